"""Both models of an experiment, found, checked against each other and described: results/models.json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from stages.common.files import read_json, sha256_of
from stages.common.model_limits import check_context
from stages.common.params import Engine, Models
from stages.common.references import Model, distilled, prune, resolve, vocabulary

MODELS_FOLDER = Path("models")
VOCABULARY_FILE = "draft_vocabulary.json"
_GIB = 1 << 30


def build_manifest(
    models: Models, engine: Engine, folder: Path = MODELS_FOLDER, with_draft: bool = True
) -> dict[str, Any]:
    """Resolve and check both models; the manifest that results/models.json holds. Raises UserError.

    `with_draft=False`: the target alone, for a baseline of a model that params names no draft for.
    """
    target = resolve(models.target, folder, models.sha256, models.target in models.trust_remote_code)
    check_tensor_parallel("engine.tensor_parallel_size", target, engine.tensor_parallel_size)
    check_context("target", target.reference, target.config, engine.max_model_len)
    if not with_draft:
        check_memory(target, None, engine)
        return {"target": describe(target, engine.dtype)}
    made_of_the_target = {"prune": prune, "distilled": distilled}.get(models.draft.partition(":")[0])
    if made_of_the_target:
        draft = made_of_the_target(models.draft, target, folder)
    else:
        draft = resolve(models.draft, folder, models.sha256, models.draft in models.trust_remote_code)
    check_vocabularies(target, draft)
    check_tensor_parallel("engine.draft_tensor_parallel_size", draft, engine.draft_tensor_parallel_size)
    check_context("draft", draft.reference, draft.config, engine.max_model_len)
    check_memory(target, draft, engine)
    return {"target": describe(target, engine.dtype), "draft": describe(draft, engine.dtype)}


def pass_bytes(model: Model, dtype: str) -> int:
    """Bytes of weights that one forward pass reads: of a reduced draft vocabulary, the chosen rows only."""
    whole = model.weights.bytes_as(dtype)
    file = model.path / VOCABULARY_FILE
    if not file.is_file():
        return whole
    unread = model.config["vocab_size"] - read_json(file)["rows"]
    return whole - unread * model.config["hidden_size"] * whole // model.weights.num_parameters


def describe(model: Model, dtype: str) -> dict[str, Any]:
    """The manifest's entry of one model."""
    pinned = model.reference.startswith("hf:")
    return {
        "reference": model.reference,
        "revision": model.revision,
        "path": str(model.path),
        "config_sha256": sha256_of(model.path / "config.json"),
        "tokenizer_sha256": sha256_of(model.tokenizer_file),
        "weights_sha256": None if pinned else model.weights.sha256(),
        "weight_bytes": model.weights.bytes_as(dtype),
        "pass_bytes": pass_bytes(model, dtype),
        "num_parameters": model.weights.num_parameters,
        "num_layers": model.config["num_hidden_layers"],
        "vocab_size": model.config["vocab_size"],
    }


def check_vocabularies(target: Model, draft: Model) -> None:
    """Both must give every token the same id: drafted ids are verified as they are, without their text."""
    sizes = target.config["vocab_size"], draft.config["vocab_size"]
    if sizes[0] != sizes[1]:
        raise UserError("models.draft: vocab_size", sizes[1], f"{sizes[0]}, as {target.reference} has")
    ours, theirs = vocabulary(target), vocabulary(draft)
    if ours is None or theirs is None:
        if sha256_of(target.tokenizer_file) != sha256_of(draft.tokenizer_file):
            file = draft.tokenizer_file.name
            raise UserError(f"models.draft: {file}", draft.reference, f"the tokenizer of {target.reference}")
    elif ours != theirs:
        differing = {*ours.items()} ^ {*theirs.items()}
        token = min(token for token, _ in differing)
        expected = f"id {ours.get(token)}, as in {target.reference}; {len(differing)} entries differ"
        raise UserError(f"models.draft: token {token!r}", theirs.get(token), expected)


def check_tensor_parallel(field: str, model: Model, size: int) -> None:
    """vLLM splits attention heads over GPUs evenly."""
    heads = model.config.get("num_attention_heads", size)
    if heads % size:
        raise UserError(field, size, f"a divisor of the {heads} attention heads of {model.reference}")


def check_memory(target: Model, draft: Model | None, engine: Engine) -> None:
    """Both models' weights must fit beside each other; the KV cache too on cpu, where its size is given.

    A draft with tensor parallel size 1 lies whole on every rank; on cpu the ranks share one memory, and
    each has a KV cache of its own.
    """
    target_bytes = target.weights.bytes_as(engine.dtype)
    draft_bytes = draft.weights.bytes_as(engine.dtype) if draft else 0
    if engine.device == "cpu":
        import psutil

        ranks = engine.tensor_parallel_size
        drafts = ranks // engine.draft_tensor_parallel_size
        needed = target_bytes + drafts * draft_bytes + ranks * engine.kv_cache_gib * _GIB
        _refuse_if_too_big("memory", psutil.virtual_memory().available, needed, "weights and KV cache")
        return
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device here: whether the models fit was not checked", file=sys.stderr)
        return
    per_gpu = target_bytes / (engine.tensor_parallel_size * engine.pipeline_parallel_size)
    per_gpu += draft_bytes / engine.draft_tensor_parallel_size
    usable = torch.cuda.get_device_properties(0).total_memory * engine.gpu_memory_utilization
    _refuse_if_too_big("memory of a GPU", usable, per_gpu, "weights alone")


def _refuse_if_too_big(what: str, available: float, needed: float, purpose: str) -> None:
    if needed > available:
        expected = (
            f"{needed / _GIB:.1f} GiB for {purpose}: a smaller model, dtype or kv_cache_gib, or more GPUs"
        )
        raise UserError(what, f"{available / _GIB:.1f} GiB", expected)
