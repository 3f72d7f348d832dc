"""What vLLM is asked for, by params alone: sizes pass through, and what cannot be combined says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.common import engine
from stages.common.engine import EnginePlan
from stages.common.errors import UserError
from stages.common.params import load_params, override
from treespec.tree import TokenTree
from treespec.vllm_plugin import CUDA_WORKER

ROOT = Path(__file__).resolve().parents[2]
CHAIN = TokenTree.chain(3)
LARGEST = TokenTree.from_file(ROOT / "trees/mc_sim_8b_512.json")
SIZES = {"engine.device": "cuda", "engine.tensor_parallel_size": 4}


@pytest.fixture
def plan(monkeypatch):
    """Plans as on a machine of eight GPUs that has Ray; no engine starts."""
    import torch

    monkeypatch.setattr(engine, "_is_cpu_build", lambda: False)
    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)

    def plan(tree=None, max_num_seqs=1, **values):
        changed = {name.replace("__", "."): value for name, value in values.items()}
        params = override(load_params(ROOT / "params.yaml"), SIZES | changed)
        return EnginePlan.of(params, max_num_seqs, tree)

    return plan


def test_a_draft_on_fewer_gpus_than_its_target(plan):
    arguments = plan(CHAIN, engine__draft_tensor_parallel_size=1).arguments
    assert arguments["tensor_parallel_size"] == 4
    assert arguments["speculative_config"]["draft_tensor_parallel_size"] == 1
    assert arguments["worker_cls"] == CUDA_WORKER
    assert arguments["distributed_executor_backend"] == "mp"


def test_ray_and_pipeline_sizes_go_to_vllm(plan):
    several = {"engine__distributed_executor_backend": "ray", "engine__pipeline_parallel_size": 3}
    arguments = plan(**several).arguments  # twelve GPUs: more than this machine's, as a cluster has them
    assert arguments["distributed_executor_backend"] == "ray"
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (4, 3)
    assert plan(CHAIN, engine__distributed_executor_backend="ray").uses_plugin
    alone = plan(engine__distributed_executor_backend="ray", engine__tensor_parallel_size=1).arguments
    assert "distributed_executor_backend" not in alone


def test_stock_speculation_passes_through_where_the_draft_is_split_alike(plan):
    stock = {"speculation__implementation": "stock", "engine__draft_tensor_parallel_size": 4}
    asked = plan(CHAIN, **stock)
    assert not asked.uses_plugin
    assert asked.environment["VLLM_PLUGINS"] == ""
    assert "worker_cls" not in asked.arguments
    assert asked.arguments["speculative_config"] == {
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "draft_tensor_parallel_size": 4,
        "enforce_eager": False,
    }


def test_a_step_has_room_for_every_sequences_tree(plan):
    assert plan(LARGEST, max_num_seqs=96).arguments["max_num_batched_tokens"] == 96 * 513
    assert plan(LARGEST).arguments["max_num_batched_tokens"] == 8192


STOCK = {"speculation__implementation": "stock"}
REFUSED = {
    "pipeline": (
        {"engine__pipeline_parallel_size": 2},
        CHAIN,
        "pipeline_parallel_size: 2; expected 1 beside",
    ),
    "pipeline, stock": (
        {**STOCK, "engine__pipeline_parallel_size": 2, "engine__draft_tensor_parallel_size": 4},
        CHAIN,
        "pipeline_parallel_size: 2; expected 1 beside a draft model: vLLM 0.15.0 drafts on the last stage",
    ),
    "stock, draft TP 1": (STOCK, CHAIN, r"draft_tensor_parallel_size: 1; expected .*\(4\) with stock vLLM"),
    "stock, tree": (
        {**STOCK, "engine__draft_tensor_parallel_size": 4},
        TokenTree.from_paths([[0], [1]]),
        "expected treespec: stock vLLM 0.15.0 ignores trees",
    ),
    "too few GPUs": (
        {"engine__tensor_parallel_size": 16},
        CHAIN,
        "tensor_parallel_size: 16; expected at most 8: 8 GPUs are here",
    ),
    "step too small": (
        {"engine__max_num_batched_tokens": 1000},
        LARGEST,
        r"max_num_batched_tokens: 1000; expected at least 1026: 2 sequences x \(512 \+ 1\)",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_combined_is_refused_with_the_reason(plan, reason):
    values, tree, line = REFUSED[reason]
    with pytest.raises(UserError, match=line):
        plan(tree, max_num_seqs=2, **values)


def test_ray_is_asked_for_where_it_is_missing(plan, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected mp: Ray is not installed here"):
        plan(CHAIN, engine__distributed_executor_backend="ray")


def test_the_plan_says_what_a_whole_draft_costs_before_anything_is_loaded(plan, tmp_path, capsys):
    for role, layers in (("target", 8), ("draft", 2)):
        folder = tmp_path / role
        folder.mkdir()
        config = f'{{"num_hidden_layers": {layers}, "num_attention_heads": 8, "hidden_size": 64}}'
        (folder / "config.json").write_text(config)
    (tmp_path / "draft/model.safetensors").write_bytes(bytes(1 << 20))
    split, whole = (plan(CHAIN, engine__draft_tensor_parallel_size=size) for size in (4, 1))
    split.check_models(tmp_path / "target", str(tmp_path / "draft"))
    assert capsys.readouterr().err == ""
    whole.check_models(tmp_path / "target", str(tmp_path / "draft"))
    line = capsys.readouterr().err
    assert "each of 4 ranks keeps the whole draft: 0.00 GiB" in line
    assert "0.5 KiB of KV cache a token" in line
