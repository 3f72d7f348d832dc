"""The stages' command lines without DVC: their help, and a line instead of a traceback for every mistake."""

from __future__ import annotations

import copy
import importlib
import shutil
import subprocess
import sys
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
    """A folder with params.yaml, questions and models, some of them broken; no stage has run in it."""
    from tiny_models import make_llama

    from stages.fetch_gsm8k import fetch

    folder = tmp_path_factory.mktemp("project")
    fetch(["synthetic"], folder / "gsm8k")
    make_models(folder / "local")
    make_llama(folder / "local/swapped", swap=True)
    make_llama(folder / "local/larger", vocab_size=192)
    shutil.copytree(folder / "local/draft", folder / "local/cut")
    weights = folder / "local/cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "orphan.json").write_text('{"parents": [-1, 0, 3]}')
    (folder / "torn.json").write_text('{"parents": [-1, 0')
    return folder


class Started(Exception):
    """All checks have passed and the engine would start now."""


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a stage's main as its command line does; returns exit status, stdout and stderr."""

    def start(*_: Any) -> None:
        raise Started

    def run(stage: str, *flags: str, **changes: Any) -> tuple[int, str, str]:
        params = copy.deepcopy(tiny_params(project / "gsm8k"))
        for name, value in changes.items():
            *blocks, key = name.split("__")
            section = params
            for block in blocks:
                section = section[block]
            section[key] = value
        write_params(project, params)
        monkeypatch.setattr(sys, "argv", [stage, "--gsm8k", "gsm8k", *flags])
        with pytest.raises(SystemExit) as ended:
            run_cli(importlib.import_module(f"stages.{stage}").main)
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(project)
    monkeypatch.setattr(EnginePlan, "start", start)
    return run


MISTAKES = {
    "params are absent": ((*BASELINE, "--params", "nowhere.yaml"), {}, "params: 'nowhere.yaml'; expected"),
    "unknown key": (BASELINE, {"engine__gpus": 4}, "engine.gpus: 4; expected no such key"),
    "wrong type": (
        BASELINE,
        {"sampling__max_tokens": "many"},
        "sampling.max_tokens: 'many'; expected a whole",
    ),
    "wrong type in a flag": ((*BASELINE, "--num-prompts", "all"), {}, "argument --num-prompts: invalid int"),
    "unknown flag": ((*BASELINE, "--use-tree"), {}, "unrecognized arguments: --use-tree; see --help"),
    "no prompts": ((*BASELINE, "--num-prompts", "0"), {}, "dataset.num_prompts: 0; expected at least 1"),
    "several batches": (("baseline",), {"engine__max_num_seqs": [1, 4]}, "--max-num-seqs: '(absent)'"),
    "no question": ((*BASELINE, "--gsm8k", "nowhere"), {}, "GSM8K folder: 'nowhere'; expected a folder that"),
    "no target": (
        (*BASELINE, "--target-model", "path:nowhere"),
        {},
        "models: 'path:nowhere'; expected an exis",
    ),
    "no model": (
        (*BASELINE, "--target-model", "gpt"),
        {},
        "models.target: 'gpt'; expected hf:OWNER/NAME@REV",
    ),
    "heads": (
        (*BASELINE, "--tensor-parallel-size", "3"),
        {},
        "engine.tensor_parallel_size: 3; expected a div",
    ),
    "no GPU build": (
        BASELINE,
        {"engine__device": "cuda"},
        "engine.device: 'cuda'; expected cpu: this is the",
    ),
    "memory": (BASELINE, {"engine__kv_cache_gib": 4096}, "memory: '"),
    "pipeline": (
        BASELINE,
        {"engine__pipeline_parallel_size": 2},
        "engine.pipeline_parallel_size: 2; expected",
    ),
    "prompts too long": (
        BASELINE,
        {"engine__max_model_len": 64},
        "engine.max_model_len: 64; expected at least",
    ),
    "answer too long": ((*BASELINE, "--max-tokens", "1024"), {}, "sampling.max_tokens: 1024; expected less"),
    "k below 1": (
        (*CHAIN[:-1], "0"),
        {},
        "speculation.chain.num_speculative_tokens.0: 0; expected at least 1",
    ),
    "k beyond": (
        (*CHAIN[:-1], "513"),
        {},
        "speculation.chain.num_speculative_tokens.0: 513; expected at most",
    ),
    "several k": (
        CHAIN[:3],
        {"speculation__chain__num_speculative_tokens": [1, 2]},
        "--num-speculative-tokens",
    ),
    "no level": (
        (*TREE, "--num-speculative-tokens", "0"),
        {},
        "--num-speculative-tokens: 0; expected at least",
    ),
    "several trees": (
        TREE,
        {"speculation__tree": {"names": ["a", "b"], "literals": {"a": [[0]], "b": [[0], [1]]}}},
        "--tree: '(absent)'; expected one of ['a', 'b']",
    ),
    "node without parent": (
        TREE,
        {"speculation__tree": {"names": ["a"], "literals": {"a": [[0], [1, 0]]}}},
        "speculation.tree.names: a: 'node [1, 0]: its parent [1] is missing'; expected a token tree",
    ),
    "no such tree": ((*TREE, "--tree", "oak"), {}, "speculation.tree.names: 'oak'; expected a name under"),
    "tree file: parent": (
        (*TREE, "--tree", "orphan.json"),
        {},
        "speculation.tree.names: orphan.json: 'node 2",
    ),
    "tree file: torn": ((*TREE, "--tree", "torn.json"), {}, "speculation.tree.names: torn.json: "),
    "draft TP": (
        (*CHAIN, "--tensor-parallel-size", "4", "--draft-tensor-parallel-size", "2"),
        {},
        "engine.draft_tensor_parallel_size: 2; expected 1 or engine.tensor_parallel_size (4)",
    ),
    "stock on cpu": (
        (*CHAIN, "--implementation", "stock"),
        {},
        "speculation.implementation: 'stock'; expected",
    ),
    "step too small": (
        TREE,
        {"engine__max_num_batched_tokens": 7},
        "engine.max_num_batched_tokens: 7; expected at least 8: 2 sequences x (3 + 1)",
    ),
    "min_p": (
        CHAIN,
        {"sampling__temperature": 0.8, "sampling__min_p": 0.1},
        "sampling.min_p: 0.1; expected 0: vLLM 0.15.0 refuses",
    ),
    "no draft": (
        (*CHAIN, "--draft-model", "path:nowhere"),
        {},
        "models: 'path:nowhere'; expected an existing",
    ),
    "truncated draft": ((*CHAIN, "--draft-model", "local/cut"), {}, "local/cut/model.safetensors: "),
    "vocabulary": ((*CHAIN, "--draft-model", "local/swapped"), {}, "models.draft: token 'a': "),
    "vocabulary size": (
        (*CHAIN, "--draft-model", "local/larger"),
        {},
        "models.draft: vocab_size: 192; expected",
    ),
    "a draft as target": (
        (*CHAIN, "--target-model", "prune:0"),
        {},
        "models.target: 'prune:0'; expected a whole",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(call, project: Path, mistake: str) -> None:
    command, changes, line = MISTAKES[mistake]
    (project / "params.yaml").touch()
    before = {path for path in project.rglob("*") if "__pycache__" not in path.parts}
    status, output, errors = call(*command, **changes)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {line}")
    assert errors.count("\n") == 1
    assert {path for path in project.rglob("*") if "__pycache__" not in path.parts} == before


@pytest.mark.parametrize(
    "command",
    [
        (*BASELINE, "--target-model", "local/larger"),  # whatever draft params names
        (*BASELINE, "--tensor-parallel-size", "2"),
        CHAIN,
        (*TREE, "--num-speculative-tokens", "24"),
        (*TREE, "--tree", "fork", "--draft-model", "path:local/target", "--num-prompts", "1"),
    ],
)
def test_what_is_right_reaches_the_engine(call, command: tuple[str, ...]) -> None:
    with pytest.raises(Started):
        call(*command)


@pytest.mark.parametrize(
    ("stage", "flags"), [("baseline", SHARED_FLAGS), ("draft_model", SHARED_FLAGS + DRAFT_FLAGS)]
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
