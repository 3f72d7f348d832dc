"""GSM8K's train questions, and which of them are held out. The test split is never trained on."""

from __future__ import annotations

import json
import random
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from stages.common.errors import UserError
from stages.common.gsm8k import Row, read_parquet

TRAIN_FILE = "main/train-00000-of-00001.parquet"


def load_train_rows(sources: Sequence[str], test_file: Path | None = None) -> tuple[list[Row], str]:
    """The train split from the first of `dataset.sources` that holds it, and that source.

    Raises UserError if none does, or if a row's question is among those of `test_file`, the measured split.
    """
    reasons = []
    for source in sources:
        try:
            rows = _read(source)
        except (OSError, ValueError, UserError) as error:
            reasons.append(f"{source}: {error}")
            continue
        if test_file is not None and test_file.is_file():
            refuse_test_questions(rows, read_parquet(test_file), source)
        return rows, source
    raise UserError("dataset.sources", "; ".join(reasons), f"one with GSM8K's train split ({TRAIN_FILE})")


def refuse_test_questions(train: Sequence[Row], test: Sequence[Row], source: str) -> None:
    """Raise UserError if a question stands in both, spaces and case aside."""
    common = {_normal(row) for row in train} & {_normal(row) for row in test}
    if common:
        raise UserError(source, f"{len(common)} questions of the test split", "train questions only")


def split_rows(
    rows: Sequence[Row], num_training: int, num_held_out: int, seed: int
) -> tuple[list[Row], list[Row]]:
    """Disjoint training and held-out rows, drawn without replacement.

    The held-out ones do not depend on `num_training`, so drafts trained on more or fewer questions are judged
    by the same ones. Raises UserError if there are too few rows.
    """
    if num_training + num_held_out > len(rows):
        expected = f"at most {len(rows) - num_held_out} beside the holdout"
        raise UserError("distill.on_policy_prompts", num_training, expected)
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    return shuffled[num_held_out : num_held_out + num_training], shuffled[:num_held_out]


def _normal(row: Row) -> str:
    return " ".join(row.question.lower().split())


def _read(source: str) -> list[Row]:
    kind, _, rest = source.partition(":")
    if kind == "path":
        return read_parquet(Path(rest).expanduser() / TRAIN_FILE)
    if kind == "hf":
        from huggingface_hub import hf_hub_download

        name, _, revision = rest.rpartition("@")
        return read_parquet(Path(hf_hub_download(name, TRAIN_FILE, repo_type="dataset", revision=revision)))
    if kind == "url" and rest.endswith("/test.jsonl"):
        with urllib.request.urlopen(re.sub(r"test\.jsonl$", "train.jsonl", rest), timeout=60) as response:
            lines = [json.loads(line) for line in response.read().splitlines()]
        return [Row(line["question"], line["answer"]) for line in lines]
    raise ValueError("holds no train split")
