"""The worker's own refusals, for whoever starts it without our stages: a line, before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from stages.common.model_limits import QUANTISATIONS
from treespec.vllm_plugin import worker
from treespec.vllm_plugin.worker import check_config


def model(name: str, **changes) -> SimpleNamespace:
    """A stand-in for vLLM's ModelConfig of a text-only decoder."""
    window = changes.pop("sliding_window", None)
    kinds = dict.fromkeys(
        ("is_multimodal_model", "uses_mrope", "is_encoder_decoder", "is_hybrid", "is_attention_free"), False
    )
    return SimpleNamespace(
        **{"model": name, "max_model_len": 256, **kinds, **changes}, get_sliding_window=lambda: window
    )


def vllm_config(**changes) -> SimpleNamespace:
    """A stand-in for a VllmConfig that the worker takes, but for `changes`."""
    draft, target = changes.pop("draft", {}), changes.pop("target", {})
    speculative = SimpleNamespace(
        uses_draft_model=lambda: changes.get("method", "draft_model") == "draft_model",
        draft_model_config=model("a-draft", **draft),
    )
    return SimpleNamespace(
        speculative_config=None if changes.get("method", "") is None else speculative,
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=changes.get("pipeline", 1),
            decode_context_parallel_size=changes.get("context", 1),
        ),
        scheduler_config=SimpleNamespace(async_scheduling=changes.get("is_async", False)),
        cache_config=SimpleNamespace(cache_dtype=changes.get("cache_dtype", "auto")),
        model_config=model("a-target", **target),
        lora_config=changes.get("lora"),
    )


def test_a_draft_model_of_text_is_taken():
    check_config(vllm_config())
    check_config(vllm_config(cache_dtype="bfloat16"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": None}, "speculative_config.method; expected 'draft_model'"),
        ({"method": "eagle"}, "speculative_config.method; expected 'draft_model'"),
        ({"pipeline": 2}, "pipeline_parallel_size 2; expected 1, the accepted path is known on the last"),
        ({"is_async": True}, "async_scheduling True; expected False, drafts follow the host's bookkeeping"),
        ({"cache_dtype": "fp8"}, "kv_cache_dtype 'fp8'; expected 'auto', a quantised cache would make"),
        ({"cache_dtype": "fp8_e5m2"}, "kv_cache_dtype 'fp8_e5m2'; expected 'auto'"),
        ({"context": 2}, "decode_context_parallel_size 2; expected 1, a rank must hold the whole of a tree"),
        ({"lora": object()}, "lora_config; expected none"),
        ({"target": {"sliding_window": 512}}, "model a-target: sliding window 512; expected none"),
        ({"draft": {"sliding_window": 512}}, "draft a-draft: sliding window 512; expected none"),
        (
            {"draft": {"max_model_len": 128}},
            "draft a-draft: 128 positions; expected at least the target's 256",
        ),
        *(
            ({whose: {flag: True}}, f"{role} a-{whose}: {kind}; expected a text-only decoder")
            for whose, role in (("target", "model"), ("draft", "draft"))
            for flag, kind in {
                "is_multimodal_model": "multimodal",
                "uses_mrope": "M-RoPE",
                "is_encoder_decoder": "encoder-decoder",
                "is_hybrid": "state-space layers",
                "is_attention_free": "state-space layers",
            }.items()
        ),
    ],
)
def test_what_trees_cannot_do_is_refused_in_a_line(changes, line):
    with pytest.raises(ValueError, match=r"^treespec: ") as error:
        check_config(vllm_config(**changes))
    assert str(error.value).startswith(f"treespec: {line}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("found", "said"), [("0.16.0", "0.16.0"), (None, "is not installed")])
def test_another_vllm_is_refused(monkeypatch, found, said):
    monkeypatch.setattr("treespec.vllm_plugin.installed_vllm", lambda: found)
    with pytest.raises(RuntimeError, match=rf"treespec: vLLM {said}; expected 0\.15\.0"):
        worker.check_config(vllm_config())


def test_the_quantisations_are_those_of_this_vllm():
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    assert sorted(QUANTISATIONS) == sorted(QUANTIZATION_METHODS)
