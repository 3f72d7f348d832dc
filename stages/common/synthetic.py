"""Questions of our own in GSM8K's schema, for machines where GSM8K cannot be had. They are not GSM8K.

    rows = synthetic_rows(1319, seed=0)       # the same rows on every machine

Each answer shows its steps with calculator marks (`<<3*4=12>>`) and ends in `#### number`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from stages.common.gsm8k import NUM_ROWS, Row

_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lucia")
_GOODS = ("pens", "apples", "stamps", "candles", "buttons", "postcards", "marbles", "tickets")


def _step(expression: str, unit: str = "") -> tuple[int, str]:
    """Value and text of one calculation: `3 * 4 = $<<3*4=12>>12`. Only +, - and * of whole numbers."""
    left, operator, right = expression.split()
    value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operator](int(left), int(right))
    return value, f"{expression} = {unit}<<{left}{operator}{right}={value}>>{value}"


def _shopping(draw: random.Random, name: str, goods: str) -> tuple[str, list[str], int]:
    count, price = draw.randint(3, 12), draw.randint(2, 9)
    paid = (count * price // 50 + 1) * 50
    cost, first = _step(f"{count} * {price}", "$")
    change, second = _step(f"{paid} - {cost}", "$")
    question = (
        f"{name} buys {count} {goods} at ${price} each and pays with ${paid}. "
        f"How many dollars does {name} get back?"
    )
    return question, [f"The {goods} cost {first}.", f"{name} gets back {second}."], change


def _weeks(draw: random.Random, name: str, goods: str) -> tuple[str, list[str], int]:
    daily, weeks, given = draw.randint(2, 15), draw.randint(2, 6), draw.randint(1, 12)
    days, first = _step(f"{weeks} * 7")
    made, second = _step(f"{days} * {daily}")
    left, third = _step(f"{made} - {given}")
    question = (
        f"{name} collects {daily} {goods} every day for {weeks} weeks and then gives {given} of them away. "
        f"How many {goods} are left?"
    )
    return (
        question,
        [f"That is {first} days.", f"{name} collects {second}.", f"There are {third} left."],
        left,
    )


def _two_people(draw: random.Random, name: str, goods: str) -> tuple[str, list[str], int]:
    other = draw.choice([one for one in _NAMES if one != name])
    own, times, more = draw.randint(4, 40), draw.randint(2, 6), draw.randint(1, 20)
    product, first = _step(f"{own} * {times}")
    theirs, second = _step(f"{product} + {more}")
    total, third = _step(f"{own} + {theirs}")
    question = (
        f"{name} has {own} {goods}. {other} has {more} more than {times} times as many. "
        f"How many {goods} do they have together?"
    )
    lines = [f"{times} times as many is {first}.", f"{other} has {second}.", f"Together: {third}."]
    return question, lines, total


def _boxes(draw: random.Random, name: str, goods: str) -> tuple[str, list[str], int]:
    boxes, each, broken, price = (draw.randint(*span) for span in ((3, 9), (6, 24), (1, 15), (2, 5)))
    packed, first = _step(f"{boxes} * {each}")
    good, second = _step(f"{packed} - {broken}")
    income, third = _step(f"{good} * {price}", "$")
    question = (
        f"{name} opens {boxes} boxes of {each} {goods}. {broken} of the {goods} are damaged and the others "
        f"sell for ${price} each. How many dollars does {name} take in?"
    )
    return question, [f"There are {first} {goods}.", f"{second} can be sold.", f"They bring {third}."], income


def _wages(draw: random.Random, name: str, goods: str) -> tuple[str, list[str], int]:
    rate, hours, saved = draw.randint(11, 30), draw.randint(3, 8), draw.randint(1, 9) * 10
    days = draw.randint(2, 6)
    worked, first = _step(f"{hours} * {days}")
    earned, second = _step(f"{worked} * {rate}", "$")
    total, third = _step(f"{earned} + {saved}", "$")
    question = (
        f"{name} packs {goods} for ${rate} an hour, {hours} hours a day on {days} days, and had saved "
        f"${saved} before. How many dollars does {name} have then?"
    )
    return question, [f"{name} works {first} hours.", f"The pay is {second}.", f"In all: {third}."], total


_TEMPLATES: tuple[Callable[[random.Random, str, str], tuple[str, list[str], int]], ...] = (
    _shopping,
    _weeks,
    _two_people,
    _boxes,
    _wages,
)


def synthetic_rows(num_rows: int = NUM_ROWS, seed: int = 0) -> list[Row]:
    """`num_rows` different questions with worked answers, the same for the same seed."""
    draw = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < num_rows:
        template = _TEMPLATES[len(rows) % len(_TEMPLATES)]
        question, lines, result = template(draw, draw.choice(_NAMES), draw.choice(_GOODS))
        rows.setdefault(question, Row(question, "\n".join([*lines, f"#### {result}"])))
    return list(rows.values())
