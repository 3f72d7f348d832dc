"""GSM8K: its rows, the prompts made of them, and the final number of an answer.

    rows = load_rows(Path("data/gsm8k"), 8)
    prompts = build_prompts(rows, tokenizer, "chat")     # token ids
    is_correct(official_answer(rows[0].answer), "... so she makes #### $18.00")   # True

Source: Cobbe et al. 2110.14168; the final number of an official answer follows `####`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from stages.common.errors import UserError
from stages.common.few_shot import EXAMPLES
from stages.common.files import read_object

PARQUET_FILE = Path("main/test-00000-of-00001.parquet")
SOURCE_FILE = Path("source.json")
NUM_ROWS = 1319
# fingerprint() of the official test split, the same from its parquet and from its JSON lines.
OFFICIAL_FINGERPRINT = "c5b1da44f494863d8fdd63656e6914de8bfdc73cdb98ae07fbd332c73f1ef21d"

_INSTRUCTION = "Solve the problem step by step. End with a line of the form '#### <answer>', a number alone."
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-−])?(?:[$€£]\s?(?P<inner>[-−])?)?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
)


class Row(NamedTuple):
    """A question and its official worked answer, which ends in `#### number`."""

    question: str
    answer: str


def read_parquet(path: Path) -> list[Row]:
    """All rows of a parquet file. UserError unless it is whole and has the two text columns."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["question", "answer"])
        table.validate(full=True)  # text that is not UTF-8 among it
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(str(path), str(error), "a whole parquet file with question and answer") from error
    if table.column_names != ["question", "answer"]:
        raise UserError(str(path), table.column_names, "the columns question and answer")
    for column in table.itercolumns():
        if not pyarrow.types.is_string(column.type) and not pyarrow.types.is_large_string(column.type):
            raise UserError(str(path), str(column.type), "columns of type string")
    return [Row(*pair) for pair in zip(*(column.to_pylist() for column in table.itercolumns()), strict=True)]


def load_rows(folder: Path, num_rows: int = NUM_ROWS) -> list[Row]:
    """The first rows of `folder`/main/test-00000-of-00001.parquet, each of them whole. Raises UserError."""
    path = Path(folder) / PARQUET_FILE
    if not path.is_file():
        raise UserError("GSM8K folder", str(folder), f"a folder that holds {PARQUET_FILE}")
    rows = read_parquet(path)
    if num_rows > len(rows):
        raise UserError("dataset.num_prompts", num_rows, f"at most the {len(rows)} rows of {path}")
    for index, row in enumerate(rows[:num_rows]):
        _check_row(row, f"{path}: row {index}")
    return rows[:num_rows]


def dataset_source(folder: Path) -> str:
    """What the metrics call the data: as fetch_gsm8k recorded it, or the folder itself."""
    path = Path(folder) / SOURCE_FILE
    if not path.is_file():
        return f"path:{folder}"
    expected = "what stages.fetch_gsm8k writes: an object with the text 'source'"
    source = read_object(path, expected).get("source")
    if not isinstance(source, str):
        raise UserError(f"{path}: source", source, expected)
    return source


def fingerprint(rows: Iterable[Row]) -> str:
    """sha256 over the texts in order, each ended by a zero byte: independent of how they are stored."""
    digest = hashlib.sha256()
    for row in rows:
        for text in row:
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def check_rows(rows: Sequence[Row], where: str) -> None:
    """Raise UserError unless there are 1,319 rows of non-empty texts, every answer ending in a number."""
    for index, row in enumerate(rows):
        _check_row(row, f"{where}: row {index}")
    if len(rows) != NUM_ROWS:
        raise UserError(where, f"{len(rows)} rows", f"{NUM_ROWS}")


def _check_row(row: Row, where: str) -> None:
    if not all(isinstance(text, str) and text.strip() for text in row):
        raise UserError(where, tuple(row), "a question and an answer")
    official_answer(row.answer, where)


def build_prompts(rows: Iterable[Row], tokenizer: Any, prompt_format: str) -> list[list[int]]:
    """Token ids of each row's prompt, for a Hugging Face `tokenizer`.

    `chat`: one user message under the model's own template. `few_shot`: eight worked examples before the
    question, for models without one. UserError for chat where the tokenizer has no template.
    """
    if prompt_format == "few_shot":
        shown = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in EXAMPLES)
        return [list(tokenizer(f"{shown}Question: {row.question}\nAnswer:").input_ids) for row in rows]
    if not tokenizer.chat_template:
        raise UserError("dataset.prompt_format", prompt_format, "few_shot: this model has no chat template")
    return [
        list(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": f"{row.question}\n\n{_INSTRUCTION}"}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for row in rows
    ]


def stop_strings(prompt_format: str) -> list[str]:
    """Where to stop generating: a few-shot answer runs on into a next question of the model's own."""
    return ["Question:"] if prompt_format == "few_shot" else []


def check_lengths(prompts: Sequence[Sequence[int]], max_tokens: int, max_model_len: int) -> None:
    """Raise UserError unless every prompt leaves room for `max_tokens`, so that no arm is cut short."""
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_tokens > max_model_len:
        expected = f"at least {longest + max_tokens}: a prompt of {longest} and sampling.max_tokens"
        raise UserError("engine.max_model_len", max_model_len, expected)


def check_tokens(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raise UserError where a prompt holds a token that the model does not know."""
    largest = max(map(max, prompts))
    if largest >= vocab_size:
        raise UserError("models.target: tokenizer", largest, f"token ids below {vocab_size}, its vocab_size")


def official_answer(answer: str, where: str = "answer") -> str:
    """The canonical final number of an official answer: `#### 1,234` -> "1234". UserError without one."""
    _, mark, ending = answer.rpartition("####")
    match = _NUMBER.fullmatch(ending.strip())
    if not mark or not match:
        raise UserError(where, answer[-40:], "an answer that ends in '#### number'")
    return _canonical(match)


def extract_answer(text: str) -> str | None:
    """The canonical final number of a model's text, or None.

    After the last `####` that a number follows on its line; else after the last "answer is"; else the last
    number anywhere.
    """
    for mark in (r"####([^\n]*)", r"(?i:answer(?:\s+is|:))([^\n]*)"):
        for ending in reversed(re.findall(mark, text)):
            if match := _NUMBER.search(ending):
                return _canonical(match)
    matches = list(_NUMBER.finditer(text))
    return _canonical(matches[-1]) if matches else None


def is_correct(expected: str, text: str) -> bool:
    """Whether a model's text ends in the number `expected`, a result of official_answer."""
    return extract_answer(text) == expected


def _canonical(match: re.Match[str]) -> str:
    """One spelling for a number: no sign of currency, no commas, no zeros behind the point."""
    digits = f"{Decimal(match['digits'].replace(',', '')):f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    digits = digits.lstrip("0") or "0"
    if digits.startswith("."):
        digits = "0" + digits
    negative = bool(match["sign"]) != bool(match["inner"])
    return f"-{digits}" if negative and digits != "0" else digits
