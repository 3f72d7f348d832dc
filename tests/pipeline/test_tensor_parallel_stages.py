"""The stages on two ranks, as a user calls them: the baseline and both kinds of draft, on the real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from pipeline_project import environment, make_project

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

SPLIT = ("--tensor-parallel-size", "2")
CHAIN = ("draft_model", "--num-speculative-tokens", "2")
TREE = ("draft_model", "--use-tree", "--tree", "fork")
RUNS = {
    "one rank": (("baseline",), "baseline/b2"),
    "baseline": (("baseline", *SPLIT), "baseline/b2"),
    "chain, draft whole": ((*CHAIN, *SPLIT, "--draft-tensor-parallel-size", "1"), "chain/k2-b2"),
    "tree, draft whole": ((*TREE, *SPLIT, "--draft-tensor-parallel-size", "1"), "tree/fork-b2"),
    "chain, draft split": ((*CHAIN, *SPLIT, "--draft-tensor-parallel-size", "2"), "chain/k2-b2"),
}


def test_two_ranks_end_to_end(tmp_path: Path, gsm8k_folder: Path) -> None:
    project = make_project(tmp_path / "project", gsm8k_folder)
    answers, said = {}, {}
    for name, ((stage, *flags), folder) in RUNS.items():
        results = tmp_path / name
        command = [sys.executable, "-m", f"stages.{stage}", *flags, "--gsm8k", str(gsm8k_folder)]
        done = subprocess.run(
            [*command, "--max-num-seqs", "2", "--temperature", "0", "--results", str(results)],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (name, done.stderr[-3000:])
        said[name] = done.stderr
        rows = pyarrow.parquet.read_table(results / folder / "requests.parquet").to_pylist()
        answers[name] = {(row["prompt_index"], tuple(row["output_token_ids"])) for row in rows}
        if stage == "draft_model":
            metrics = json.loads((results / folder / "metrics.json").read_text(encoding="utf-8"))
            assert metrics["speculation"]["num_accepted_tokens"] > 0, name
    assert all(found == answers["one rank"] for found in answers.values())
    told = {name for name, text in said.items() if "each of 2 ranks keeps the whole draft" in text}
    assert told == {"chain, draft whole", "tree, draft whole"}
