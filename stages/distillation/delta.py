"""A distilled draft on disk: only what differs from its target, and the whole model put together again.

FOLDER/model.safetensors       layers and final norm, bfloat16, named as in a Hugging Face checkpoint
FOLDER/config.json             the target's, with fewer layers
FOLDER/draft_vocabulary.json   token_ids: by how often the target's answers use them; coverage: share of the
                               held-out answers' tokens that are among the first n, by n
FOLDER/distill.json            from what, how and how well it was trained
FOLDER/README.md               the model card

assemble_draft(Path("models/draft"), Path("models/target"), Path("models/draft-assembled"))

writes a whole Hugging Face folder. If the draft was distilled for a reduced vocabulary of N tokens
(`distill.vocabulary`), a draft_vocabulary.json of another form stands in it:

{"rows": N, "ids": [the N token ids], "coverage": share of the held-out answers' tokens among them}

A draft that reads only these rows of the logit matrix is cheaper; verification stays lossless.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.common.errors import UserError
from stages.common.files import atomic_folder, read_json, write_json, write_text
from stages.distillation.card import model_card
from stages.distillation.model import PREFIX

EMBEDDING, HEAD = f"{PREFIX}embed_tokens.weight", "lm_head.weight"
# How the files that a draft takes from its target begin: tokenizer, chat template, stop tokens.
_TAKEN = (
    "tokenizer",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "chat_template",
    "generation_config",
)


def write_delta(
    folder: Path,
    weights: dict[str, Tensor],  # a Decoder's state dict
    target_config: dict[str, Any],
    vocabulary: dict[str, Any],
    record: dict[str, Any],  # becomes distill.json; `target.embedding_sha256` ties the draft to its target
) -> None:
    """Write a draft's folder, whole or not at all."""
    num_layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    config = {**target_config, "num_hidden_layers": num_layers}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:num_layers]
    tensors = {
        PREFIX + name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()
    }
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)
        write_json(temporary / "config.json", config)
        # One line: thousands of ids are not for reading.
        write_text(temporary / "draft_vocabulary.json", json.dumps(vocabulary) + "\n")
        write_json(temporary / "distill.json", record)
        write_text(temporary / "README.md", model_card(record))


def assemble_draft(delta_dir: Path, target_dir: Path, out_dir: Path) -> Path:
    """Write the draft as a complete Hugging Face folder; returns `out_dir`.

    Raises UserError if `target_dir` holds another embedding than the one the draft was trained on.
    """
    record = read_json(delta_dir / "distill.json")
    shared = shared_tensors(target_dir)
    expected = record["target"]["embedding_sha256"]
    if (found := embedding_sha256(shared[EMBEDDING])) != expected:
        raise UserError(
            f"embedding of {target_dir}", found[:12], f"{expected[:12]}, {record['target']['reference']}'s"
        )
    with atomic_folder(out_dir) as temporary:
        tensors = {**shared, **load_file(delta_dir / "model.safetensors")}
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)
        for path in target_dir.iterdir():
            if path.name.startswith(_TAKEN):
                shutil.copyfile(path, temporary / path.name)
        shutil.copyfile(delta_dir / "config.json", temporary / "config.json")
        if num_rows := record["settings"]["vocabulary"]:
            vocabulary = reduced_vocabulary(read_json(delta_dir / "draft_vocabulary.json"), num_rows)
            write_text(temporary / "draft_vocabulary.json", json.dumps(vocabulary) + "\n")
    return out_dir


def reduced_vocabulary(ranked: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """The `num_rows` most used tokens of a draft's draft_vocabulary.json, in the form of a whole draft."""
    ids = ranked["token_ids"][:num_rows]
    return {"rows": len(ids), "ids": ids, "coverage": ranked["coverage"].get(str(len(ids)))}


def shared_tensors(target_dir: Path) -> dict[str, Tensor]:
    """The embedding, and the logit matrix where it is a tensor of its own, in bfloat16."""
    tensors = {}
    for file in sorted(target_dir.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in {EMBEDDING, HEAD} & set(stored.keys()):
                tensors[name] = stored.get_tensor(name).to(torch.bfloat16)
    if EMBEDDING not in tensors:
        raise UserError("target", str(target_dir), f"a folder of safetensors that hold {EMBEDDING}")
    return tensors


def embedding_sha256(embedding: Tensor) -> str:
    """Digest of the bfloat16 embedding: which target a draft belongs to, in whatever dtype that is stored."""
    raw = embedding.to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
    return hashlib.sha256(raw.numpy()).hexdigest()
