"""Eight worked examples for the few-shot prompt: our own, in the form of GSM8K's answers."""

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "A shelf holds 7 red books and twice as many blue ones. How many books does it hold?",
        "There are 2 * 7 = 14 blue books. Together that is 7 + 14 = 21 books.\n#### 21",
    ),
    (
        "Omar buys 4 notebooks at $3 each and pays with a $20 bill. How much change does he get?",
        "The notebooks cost 4 * 3 = $12. His change is 20 - 12 = $8.\n#### 8",
    ),
    (
        "A tank of 90 litres is one third full. How many litres are missing?",
        "It holds 90 / 3 = 30 litres. So 90 - 30 = 60 litres are missing.\n#### 60",
    ),
    (
        "Lena runs 5 km on each of 6 days and 12 km on Sunday. How far does she run in the week?",
        "On the six days she runs 5 * 6 = 30 km. With Sunday it is 30 + 12 = 42 km.\n#### 42",
    ),
    (
        "A baker makes 48 rolls and sells 75% of them. The rest go into bags of 4. How many bags are there?",
        "He sells 48 * 0.75 = 36 rolls. 48 - 36 = 12 remain. They fill 12 / 4 = 3 bags.\n#### 3",
    ),
    (
        "Yuki is 9. Her brother is 4 years older, and their aunt is three times as old as he is. "
        "How old is the aunt?",
        "The brother is 9 + 4 = 13. The aunt is 3 * 13 = 39.\n#### 39",
    ),
    (
        "A train has 8 cars of 60 seats. 410 seats are taken. How many are free?",
        "There are 8 * 60 = 480 seats. 480 - 410 = 70 are free.\n#### 70",
    ),
    (
        "A machine makes 250 screws an hour for 6 hours; 1 in 10 is thrown away. How many are kept?",
        "It makes 250 * 6 = 1500 screws. 1500 / 10 = 150 are bad. 1500 - 150 = 1350 are kept.\n#### 1350",
    ),
)
