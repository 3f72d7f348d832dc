"""A Llama/Qwen2 decoder in plain torch: the target frozen, the draft trained, both in batches.

Parameters carry the names of the Hugging Face checkpoint, so a state dict is a checkpoint. The embedding and
the logit matrix stand apart (`Vocabulary`), because a draft shares them with its target:

    config, target, vocabulary = load_target(Path("models/target"), torch.bfloat16, "cuda")
    draft = take_layers(target, config, [0, 1, 29])
    logits = vocabulary.logits(draft(vocabulary.embed(token_ids)))   # [batch, length, vocab]

Checked against transformers to 1e-4 in tests/unit/test_distill.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from stages.common.errors import UserError

PREFIX = "model."  # of every tensor of the decoder in a checkpoint


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers of a Hugging Face config.json that the forward pass needs."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rms_norm_eps: float
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> DecoderConfig:
        """Read a config.json. Raises UserError for anything but Llama and Qwen2 as they come."""
        kind = raw.get("model_type")
        if kind not in ("llama", "qwen2"):
            raise UserError("model_type", kind, "llama or qwen2: the families a draft can be distilled from")
        rope = raw.get("rope_parameters") or {}  # where transformers 5 keeps both rope fields
        scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
        if scaling and scaling.get("rope_type", scaling.get("type")) != "llama3":
            raise UserError("rope_scaling", scaling, "none or rope_type llama3")
        if raw.get("use_sliding_window") or raw.get("hidden_act", "silu") != "silu":
            raise UserError("config.json", kind, "full attention and hidden_act silu")
        return cls(
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta", 10000.0)),
            rope_scaling=scaling,
            rms_norm_eps=raw["rms_norm_eps"],
            qkv_bias=kind == "qwen2" or bool(raw.get("attention_bias")),
            output_bias=kind == "llama" and bool(raw.get("attention_bias")),
            mlp_bias=bool(raw.get("mlp_bias")),
        )


@dataclass(frozen=True)
class Vocabulary:
    """The target's embedding and logit matrix, each [vocab, hidden] (the same tensor when tied); frozen."""

    embedding: Tensor
    head: Tensor

    def embed(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head)


class KeyValueCache:
    """Static keys and values of every layer, each [batch, kv_heads, capacity, head_dim].

    A sequence's token n lies in column n, whatever the lengths beside it; columns past a sequence's end hold
    rubbish until written and are masked.
    """

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, like: Tensor):
        shape = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self.storage = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.rows = torch.arange(batch, device=like.device)
        self.columns = torch.arange(capacity, device=like.device)

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the prompts' keys and values, [batch, kv_heads, length, head_dim], from column 0 on."""
        self.storage[layer, 0, :, :, : keys.shape[2]] = keys
        self.storage[layer, 1, :, :, : keys.shape[2]] = values

    def append(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token a sequence at `positions` [batch, 1]; return the layer's keys and values."""
        self.storage[layer, 0, self.rows, :, positions[:, 0]] = keys[:, :, 0]
        self.storage[layer, 1, self.rows, :, positions[:, 0]] = values[:, :, 0]
        return self.storage[layer, 0], self.storage[layer, 1]


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        size, width = config.hidden_size, config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, size, bias=config.output_bias)

    def forward(
        self,
        hidden: Tensor,  # [batch, length, hidden]
        rotary: tuple[Tensor, Tensor],  # cos, sin: [batch or 1, 1, length, head_dim]
        positions: Tensor,  # [batch or 1, length]
        cache: KeyValueCache | None,
        layer: int,
    ) -> Tensor:
        config, (batch, length, _) = self.config, hidden.shape
        query, key, value = (
            projection(hidden).view(batch, length, -1, config.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (rotate(states, *rotary).to(value.dtype) for states in (query, key))
        if cache is None or length > 1:
            if cache is not None:
                cache.fill(layer, key, value)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            key, value = cache.append(layer, key, value, positions)
            # The heads that share a key stand in the place of the query length: no key is repeated.
            grouped = query.view(batch, config.num_kv_heads, -1, config.head_dim)
            seen = (cache.columns <= positions)[:, None, None, :]
            mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=seen)
            mixed = mixed.reshape(batch, config.num_heads, 1, config.head_dim)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        size, width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(size, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor, *attention: Any) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), *attention)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    """Embedded tokens to the hidden states that the logit matrix reads."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        embedded: Tensor,  # [batch, length, hidden]
        positions: Tensor | None = None,  # [batch, 1] for a decoding step; None: 0, 1, ... for all
        cache: KeyValueCache | None = None,  # a prompt fills it, a single token appends to it
    ) -> Tensor:  # [batch, length, hidden]
        if positions is None:
            positions = torch.arange(embedded.shape[1], device=embedded.device)[None]
        angles = positions[:, None, :, None].float() * rope_frequencies(self.config, embedded.device)
        angles = torch.cat((angles, angles), dim=-1)
        rotary = (angles.cos(), angles.sin())
        hidden = embedded.to(self.norm.weight.dtype)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotary, positions, cache, index)
        return self.norm(hidden)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding with the two halves of a head apart, as in Hugging Face checkpoints."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def rope_frequencies(config: DecoderConfig, device: torch.device) -> Tensor:
    """Inverse frequencies [head_dim / 2]; with rope_type llama3, low ones slowed as Llama 3.1 does."""
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: a slow frequency, scaled; 1: a fast one, kept
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def load_target(folder: Path, dtype: torch.dtype, device: str) -> tuple[DecoderConfig, Decoder, Vocabulary]:
    """The frozen decoder and vocabulary of a Hugging Face folder (one safetensors file or many)."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = DecoderConfig.from_hf(raw)
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            tensors.update({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    embedding = tensors.pop(f"{PREFIX}embed_tokens.weight").to(device, dtype)
    head = tensors.pop("lm_head.weight", None)
    head = embedding if head is None or raw.get("tie_word_embeddings") else head.to(device, dtype)
    with torch.device("meta"):
        decoder = Decoder(config)
    weights = {name.removeprefix(PREFIX): tensor.to(device, dtype) for name, tensor in tensors.items()}
    decoder.load_state_dict(weights, assign=True)
    return config, decoder.requires_grad_(False).eval(), Vocabulary(embedding, head)


def take_layers(target: Decoder, config: DecoderConfig, layers_from: Sequence[int]) -> Decoder:
    """A trainable float32 draft whose layers start as the target's `layers_from`, in that order."""
    if not layers_from or not all(0 <= layer < config.num_layers for layer in layers_from):
        raise UserError(
            "distill.shapes", list(layers_from), f"layers of the target: 0..{config.num_layers - 1}"
        )
    draft = Decoder(replace(config, num_layers=len(layers_from)))
    for layer, source in zip(draft.layers, layers_from, strict=True):
        layer.load_state_dict(target.layers[source].state_dict())
    draft.norm.load_state_dict(target.norm.state_dict())
    return draft.to(next(target.parameters()).device).float()
