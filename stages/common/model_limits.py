"""What config.json says before anything is loaded: can the plugin run a model, what does a draft cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from stages.common.files import read_json

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_KIB, _GIB = 1 << 10, 1 << 30


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
