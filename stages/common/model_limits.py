"""What config.json says before anything is loaded: is a model whole, can it be run, what does it cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from stages.common.files import read_json, read_object
from stages.common.weights import Weights

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_KIB, _GIB = 1 << 10, 1 << 30
_NEEDED_SIZES = ("vocab_size", "num_hidden_layers")
_SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
# vllm.model_executor.layers.quantization.QUANTIZATION_METHODS of 0.15.0; a test compares them.
QUANTISATIONS = (
    *("awq", "awq_marlin", "bitblas", "bitsandbytes", "compressed-tensors", "cpu_awq", "experts_int8"),
    *("fbgemm_fp8", "fp8", "fp_quant", "gguf", "gptq", "gptq_bitblas", "gptq_marlin", "gptq_marlin_24"),
    *("inc", "ipex", "modelopt", "modelopt_fp4", "moe_wna16", "mxfp4", "petit_nvfp4", "ptpc_fp8", "quark"),
    "torchao",
)
_STATE_SPACE = ("mamba_d_state", "mamba_num_heads", "state_size", "ssm_cfg", "hybrid_override_pattern")
_WHOLE_ATTENTION = ("full_attention", "attention")


def read_config(reference: str, folder: Path) -> dict[str, Any]:
    """config.json with the sizes that must be there, all of them positive. Raises UserError."""
    field = f"{reference}: config.json"
    config = read_object(
        folder / "config.json", f"a readable config.json with {' and '.join(_NEEDED_SIZES)}", field
    )
    for key in (*_NEEDED_SIZES, *_SIZES):
        size = config.get(key)
        if size is None and key not in _NEEDED_SIZES:
            continue
        if type(size) is not int or size < 1:
            value = "(absent)" if size is None else size
            raise UserError(f"{field}: {key}", value, "a whole number of at least 1")
    for key in ("quantization_config", "rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(f"{field}: {key}", config[key], "a block of keys")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None and str(method).lower().replace("_tensors", "-tensors") not in QUANTISATIONS:
        expected = f"none, or one that vLLM 0.15.0 knows: {', '.join(QUANTISATIONS)}"
        raise UserError(f"{field}: quant_method", method, expected)
    return config


def check_complete(reference: str, config: dict[str, Any], weights: Weights) -> None:
    """Raise UserError where the weights have fewer layers or other tokens than config.json says."""
    embedding = weights.tensors.get("model.embed_tokens.weight")
    if embedding is not None and embedding.shape[:1] != (config["vocab_size"],):
        expected = f"{config['vocab_size']}, the vocab_size of its config.json"
        raise UserError(f"{reference}: rows of embed_tokens", embedding.shape[0], expected)
    matches = (re.match(r"model\.layers\.(\d+)\.", name) for name in weights.tensors)
    layers = {int(match[1]) for match in matches if match}
    missing = sorted(set(range(config["num_hidden_layers"])) - layers) if layers else []
    if missing:
        expected = f"all {config['num_hidden_layers']} of its config.json"
        raise UserError(f"{reference}: layers", f"{missing[0]} is absent", expected)


def check_context(role: str, reference: str, config: dict[str, Any], max_model_len: int) -> None:
    """Raise UserError where a sequence could outgrow the positions that the model knows.

    Scaled ones are left to vLLM, which knows every kind of scaling.
    """
    known = config.get("max_position_embeddings")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    is_scaled = rope.get("rope_type", rope.get("type", "default")) != "default" or any(
        isinstance(value, dict) for value in rope.values()
    )
    if known is not None and not is_scaled and max_model_len > known:
        expected = f"at most {known}, the max_position_embeddings of the {role} {reference}"
        raise UserError("engine.max_model_len", max_model_len, expected)


def check_for_plugin(role: str, folder: Path) -> None:
    """Raise UserError for what vLLM 0.15.0 cannot speculate on with a draft model, or the plugin cannot."""
    config = read_json(folder / "config.json")
    field = f"models.{role}"
    for key in ("vision_config", "audio_config"):
        if key in config:
            raise UserError(f"{field}: {key}", str(folder), "a text-only model")
    if config.get("is_encoder_decoder"):
        raise UserError(f"{field}: is_encoder_decoder", True, "a decoder")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "mrope_section" in rope:
        raise UserError(f"{field}: mrope_section", rope["mrope_section"], "none: drafts know no M-RoPE")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window is not None:
        raise UserError(f"{field}: sliding_window", window, "none: tree nodes are not stored by position")
    for key in _STATE_SPACE:
        if config.get(key) is not None:
            raise UserError(f"{field}: {key}", config[key], "none: a state cannot be taken back to a node")
    for kind in config.get("layer_types") or ():
        if kind not in _WHOLE_ATTENTION:
            raise UserError(f"{field}: layer_types", kind, f"{_WHOLE_ATTENTION[0]} in every layer")
    quantisation = config.get("quantization_config") or {}
    for key in ("kv_cache_scheme", "kv_cache_quant_algo"):
        if quantisation.get(key) is not None:
            expected = "none: a quantised cache would make drafted and plain decoding differ"
            raise UserError(f"{field}: {key}", quantisation[key], expected)


def whole_draft_line(target: Path, draft: Path, dtype: str, num_ranks: int) -> str:
    """What it costs to keep the whole draft on each of `num_ranks` ranks of a split target."""
    weights = sum(file.stat().st_size for file in draft.glob("*.safetensors"))
    ours, theirs = (kv_bytes(read_json(folder / "config.json"), dtype) for folder in (draft, target))
    return (
        f"draft_tensor_parallel_size 1: each of {num_ranks} ranks keeps the whole draft: "
        f"{weights / _GIB:.2f} GiB of weights on disk, and {ours / _KIB:.1f} KiB of KV cache a token "
        f"beside its share of the target's, {theirs / num_ranks / _KIB:.1f} KiB"
    )


def kv_bytes(config: dict[str, Any], dtype: str) -> int:
    """Bytes of keys and values of one token in all layers, on one rank that holds all heads."""
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return 2 * config["num_hidden_layers"] * kv_heads * head_size * _BYTES[dtype]
