"""The stages' command lines without DVC: help, and what reaches the engine (mistakes: test_bad_input.py)."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_project import ROOT, environment, make_models, tiny_params, write_params

from stages.common.engine import EnginePlan
from stages.common.errors import run_cli

SHARED_FLAGS = ("--target-model", "--tensor-parallel-size", "--max-num-seqs", "--num-prompts", "--max-tokens")
SHARED_FLAGS += ("--gsm8k", "--enforce-eager", "--params", "--results")
DRAFT_FLAGS = ("--draft-model", "--num-speculative-tokens", "--draft-tensor-parallel-size", "--use-tree")
DRAFT_FLAGS += ("--tree", "--implementation")
BASELINE = ("baseline", "--max-num-seqs", "1")
CHAIN = ("draft_model", "--max-num-seqs", "2", "--num-speculative-tokens", "2")
TREE = ("draft_model", "--max-num-seqs", "2", "--use-tree")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, questions and models; no stage has run in it."""
    from tiny_models import make_llama

    from stages.fetch_gsm8k import fetch

    folder = tmp_path_factory.mktemp("project")
    fetch(["synthetic"], folder / "gsm8k")
    make_models(folder / "local")
    make_llama(folder / "local/larger", vocab_size=192, max_position_embeddings=1024)
    return folder


class Started(Exception):
    """All checks have passed and the engine would start now."""


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a stage's main as its command line does, up to the engine's start."""

    def start(*_: Any) -> None:
        raise Started

    def run(stage: str, *flags: str) -> None:
        write_params(project, tiny_params(project / "gsm8k"))
        monkeypatch.setattr(sys, "argv", [stage, "--gsm8k", "gsm8k", *flags])
        run_cli(importlib.import_module(f"stages.{stage}").main)

    monkeypatch.chdir(project)
    monkeypatch.setattr(EnginePlan, "start", start)
    return run


@pytest.mark.parametrize(
    "command",
    [
        (*BASELINE, "--target-model", "local/larger"),  # whatever draft params names
        (*BASELINE, "--tensor-parallel-size", "2"),
        ("baseline_again", *BASELINE[1:]),
        CHAIN,
        (*TREE, "--num-speculative-tokens", "24"),
        (*TREE, "--tree", "fork", "--draft-model", "path:local/target", "--num-prompts", "1"),
    ],
)
def test_what_is_right_reaches_the_engine(call, command: tuple[str, ...]) -> None:
    with pytest.raises(Started):
        call(*command)


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("baseline", SHARED_FLAGS),
        ("baseline_again", SHARED_FLAGS),
        ("draft_model", SHARED_FLAGS + DRAFT_FLAGS),
    ],
)
def test_help_names_every_flag(stage: str, flags: tuple[str, ...]) -> None:
    done = python("-m", f"stages.{stage}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert [flag for flag in flags if f"{flag} " not in done.stdout] == []
    assert f"python -m stages.{stage} --" in done.stdout  # an example


def test_a_mistake_is_found_without_importing_vllm() -> None:
    code = "import runpy, sys; sys.modules |= dict.fromkeys(['vllm', 'torch', 'transformers']); "
    code += "runpy.run_module('stages.draft_model', run_name='__main__')"
    done = python("-c", code, "--draft-tensor-parallel-size", "2", "--use-tree", "--max-num-seqs", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: engine.draft_tensor_parallel_size: 2; expected 1 or")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
