"""Rows, prompts and answers of GSM8K: every official answer is understood, and so is what models write."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_tokenizer

from stages.common.errors import UserError
from stages.common.few_shot import EXAMPLES
from stages.common.gsm8k import (
    NUM_ROWS,
    OFFICIAL_FINGERPRINT,
    Row,
    build_prompts,
    check_lengths,
    check_rows,
    extract_answer,
    fingerprint,
    is_correct,
    load_rows,
    official_answer,
    stop_strings,
)
from stages.common.synthetic import synthetic_rows


@pytest.fixture(scope="module")
def rows(gsm8k_folder):
    return load_rows(gsm8k_folder)


def test_the_official_data_is_what_the_constants_say(rows):
    check_rows(rows, "official")
    assert len(rows) == NUM_ROWS
    assert fingerprint(rows) == OFFICIAL_FINGERPRINT


def test_every_official_answer_is_a_whole_number_and_marks_itself_correct(rows):
    for row in rows:
        expected = official_answer(row.answer)
        assert re.fullmatch(r"-?\d+", expected)
        assert is_correct(expected, row.answer)


def test_the_first_rows_in_order(rows, gsm8k_folder):
    assert load_rows(gsm8k_folder, 3) == rows[:3]
    with pytest.raises(UserError, match=r"num_prompts: 2000; expected at most the 1319 rows"):
        load_rows(gsm8k_folder, 2000)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $18.00", "18"),
        ("####18 dollars a day, of 30", "18"),
        ("#### **42**", "42"),
        ("#### -5", "-5"),
        ("#### -$1,500.50", "-1500.5"),
        ("#### −3", "-3"),
        ("#### 0.50", "0.5"),
        ("#### .5", "0.5"),
        ("#### -0", "0"),
        ("#### 1\nno: #### 2", "2"),
        ("#### 7\n#### <answer>", "7"),
        ("The answer is 12 apples of the 30.", "12"),
        ("the Answer is: $1,000. That is 50% more.", "1000"),
        ("Final answer: 8", "8"),
        ("She pays $5, then $6.", "6"),
        ("10-3", "3"),
        ("It is 5.", "5"),
        ("\\boxed{72}", "72"),
        ("(2) and (9)", "9"),
        ("1,2,3", "3"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_models_text(text, number):
    assert extract_answer(text) == number


@given(
    value=st.integers(-(10**9), 10**9),
    form=st.sampled_from(["{:d}", "{:,}", "{:d}.00", "{:,}.", "${:d}", "${:,}", "**{:,}**", "{:d} apples"]),
    words=st.text("abc xyz\n", max_size=20),
)
def test_however_a_number_is_spelt(value, form, words):
    text = f"{words}12 x\n#### {form.format(value)}"
    assert extract_answer(text) == str(value)


@pytest.mark.parametrize("answer", ["7", "#### ", "#### seven", "#### 7 apples", "#### 7\nand more"])
def test_an_official_answer_without_its_number_is_refused(answer):
    with pytest.raises(UserError, match="expected an answer that ends in '#### number'"):
        official_answer(answer)


def test_chat_prompts_follow_the_models_template():
    tokenizer = make_tokenizer()
    rows = [Row("How many?", "#### 1"), Row("How much?", "#### 2")]
    prompts = build_prompts(rows, tokenizer, "chat")
    assert all(isinstance(token, int) for prompt in prompts for token in prompt)
    text = tokenizer.decode(prompts[1])
    assert text.startswith("<|im_start|>user: How much?")
    assert "####" in text
    assert text.endswith("<|im_end|><|im_start|>assistant: ")
    assert stop_strings("chat") == []


def test_few_shot_prompts_show_eight_examples_and_stop_at_the_next_question():
    tokenizer = make_tokenizer(chat_template=None)
    (prompt,) = build_prompts([Row("How many?", "#### 1")], tokenizer, "few_shot")
    text = tokenizer.decode(prompt)
    assert text.count("Question: ") == len(EXAMPLES) + 1 == 9
    assert text.endswith("Question: How many?\nAnswer:")
    assert stop_strings("few_shot") == ["Question:"]


def test_chat_without_a_template_says_what_to_do():
    with pytest.raises(UserError, match=r"prompt_format: 'chat'; expected few_shot"):
        build_prompts([Row("?", "#### 1")], make_tokenizer(chat_template=None), "chat")


def test_a_prompt_that_leaves_no_room_is_refused_early():
    check_lengths([[1] * 10, [1] * 20], max_tokens=12, max_model_len=32)
    with pytest.raises(UserError, match=r"max_model_len: 32; expected at least 33"):
        check_lengths([[1] * 10, [1] * 20], max_tokens=13, max_model_len=32)


def calculations(text):
    """Every `expression = result` in a worked answer, calculator marks and units removed."""
    plain = re.sub(r"<<[^>]*>>|\$", "", text)
    return re.findall(r"([\d.]+(?: [-+*/] [\d.]+)+) = (\d+)", plain)


def test_the_worked_examples_are_right_and_not_from_the_test_split(rows):
    questions = {row.question for row in rows}
    for question, answer in EXAMPLES:
        found = calculations(answer)
        assert question not in questions
        assert found
        assert found[-1][1] == official_answer(answer)
        assert all(eval(expression) == float(result) for expression, result in found)


def test_synthetic_rows_have_the_schema_and_add_up():
    rows = synthetic_rows()
    check_rows(rows, "synthetic")
    assert len({row.question for row in rows}) == NUM_ROWS
    assert rows == synthetic_rows()
    assert rows != synthetic_rows(seed=1)
    for row in rows:
        found = calculations(row.answer)
        assert all(eval(expression) == int(result) for expression, result in found)
        assert found[-1][1] == official_answer(row.answer)
        assert re.findall(r"<<(.*?)=\d+>>", row.answer) == [one.replace(" ", "") for one, _ in found]
