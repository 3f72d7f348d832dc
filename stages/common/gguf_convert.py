"""A GGUF file of the Llama family as an ordinary safetensors folder, dequantised.

    convert_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), Path("models/smollm2"))

writes config.json, generation_config.json, model.safetensors (bfloat16, tied embeddings kept tied) and the
tokenizer with its chat template. The file's own metadata is read here rather than through
`transformers ... gguf_file=`, which for byte-level vocabularies drops the digit splitting, prepends the
first special token and takes it for the end of text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stages.common.errors import UserError
from stages.common.files import write_json
from stages.common.weights import save_weights

# GGUF name -> name in a Llama checkpoint; {} stands for the layer.
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write `gguf_file` as a model folder. `folder` must exist; UserError if the kind is not supported."""
    import gguf

    try:
        reader = gguf.GGUFReader(gguf_file)
    except (ValueError, IndexError, OSError) as error:
        raise UserError(gguf_file.name, str(error), "a whole GGUF file") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata.get("general.architecture") != "llama":
        raise UserError(gguf_file.name, metadata.get("general.architecture"), "a GGUF of architecture llama")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = _config(metadata, tied)
    tensors = {}
    for tensor in tqdm(reader.tensors, desc="dequantise", unit="tensor"):
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if match := re.search(r"attn_([qk])\.weight$", tensor.name):
            heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
            weights = _split_halves(weights, heads)
        tensors[_llama_name(tensor.name)] = torch.tensor(weights, dtype=torch.bfloat16)
    save_weights(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    _save_tokenizer(metadata, config, folder)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", special)


def _llama_name(name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None or match[2] not in _TENSORS:
        raise UserError("GGUF tensor", name, f"one of {', '.join(_TENSORS)}")
    return _TENSORS[match[2]].format(match[1]) + ".weight"


def _split_halves(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo llama.cpp's row order: it interleaves each rotated pair, a checkpoint keeps the halves apart."""
    rows, columns = weights.shape
    pairs = weights.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    def shortest(value: float) -> float:
        return float(str(np.float32(value)))

    heads = metadata["llama.attention.head_count"]
    hidden = metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata.get("llama.attention.key_length", hidden // heads),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata.get(
            "tokenizer.ggml.padding_token_id", metadata["tokenizer.ggml.eos_token_id"]
        ),
        "dtype": "bfloat16",
    }


def _save_tokenizer(metadata: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splitters = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind[0] != "gpt2" or kind[1] not in splitters:
        raise UserError("GGUF tokenizer", "/".join(map(str, kind)), "gpt2/gpt-2 or gpt2/smollm")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = splitters[kind[1]]
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type == _CONTROL_TOKEN
        ]
    )
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[config["bos_token_id"]],
        eos_token=tokens[config["eos_token_id"]],
        pad_token=tokens[config["pad_token_id"]],
        unk_token=None if unknown is None else tokens[unknown],
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
