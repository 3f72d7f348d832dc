"""Models and settings that speculation cannot serve are refused by their config.json, before loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.common import engine
from stages.common.errors import UserError
from stages.common.model_limits import check_context, check_for_plugin, kv_bytes, whole_draft_line
from stages.common.params import load_params, override

LLAMA = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}
PARAMS = load_params(Path(__file__).resolve().parents[2] / "params.yaml")


def written(folder: Path, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"vision_config": {}}, "vision_config"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"rope_scaling": {"mrope_section": [1, 2]}}, "mrope_section"),
        ({"sliding_window": 4096}, "sliding_window"),
    ],
)
def test_what_the_plugin_cannot_run_is_refused_by_name(tmp_path, config, key):
    with pytest.raises(UserError, match=rf"models\.draft: {key}: .*; expected"):
        check_for_plugin("draft", written(tmp_path, **config))


def test_text_models_pass_with_an_unused_window_too(tmp_path):
    check_for_plugin("target", written(tmp_path))
    check_for_plugin("target", written(tmp_path, sliding_window=4096, use_sliding_window=False))


def test_the_cost_of_a_whole_draft_is_said(tmp_path):
    target, draft = written(tmp_path / "t", num_hidden_layers=4), written(tmp_path / "d")
    assert kv_bytes({**LLAMA, "num_hidden_layers": 4}, "float32") == 2 * 4 * 4 * 8 * 4
    line = whole_draft_line(target, draft, "float32", 2)
    assert "each of 2 ranks" in line
    assert "0.5 KiB of KV cache a token beside its share of the target's, 0.5 KiB" in line


def test_ray_is_refused_where_it_cannot_run():
    params = override(PARAMS, {"engine.distributed_executor_backend": "ray"})
    with pytest.raises(UserError, match=r"distributed_executor_backend: 'ray'; expected mp on cpu"):
        engine._check_devices(params)


def test_ranks_share_the_cpus_where_there_are_too_few_numa_nodes(monkeypatch):
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(128, 256)))
    bound = engine._cpu_threads(64)["VLLM_CPU_OMP_THREADS_BIND"].split("|")
    assert bound[0] == "128,129"
    assert len(bound) == 64
    assert engine._cpu_threads(1) == {}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"max_position_embeddings": 256}, 256),
        ({"max_position_embeddings": 256, "rope_scaling": None}, 256),
        (
            {"max_position_embeddings": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            256,
        ),
        ({"max_position_embeddings": 256, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, None),
        (
            {"max_position_embeddings": 256, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            None,
        ),
    ],
)
def test_a_sequence_must_not_outgrow_the_positions_unless_they_are_scaled(config, longest):
    check_context("target", "path:x", config, longest or 1 << 20)
    if longest:
        with pytest.raises(
            UserError, match=r"engine\.max_model_len: 257; expected at most 256, the max_posit"
        ):
            check_context("target", "path:x", config, 257)
