"""Safetensors folders: what is in them, and whether all of it is there, from the headers alone.

    weights = read_weights(Path("models/smollm2"))
    weights.num_parameters, weights.bytes_as("bfloat16")

Only safetensors is read: `.bin` and `.pt` files are pickles, which run code when opened.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.common.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
# Bits of an element by safetensors' name of its type.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}
_ENGINE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_CAST_BY_THE_ENGINE = {"F64", "F32", "F16", "BF16"}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: its shape, safetensors' name of its type, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder by name, and its files in order."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values())

    def bytes_as(self, dtype: str) -> int:
        """Bytes once loaded in the engine's `dtype`; tensors of fewer than 16 bits keep their own size."""
        return sum(
            tensor.num_elements * _ENGINE_BYTES[dtype]
            if tensor.dtype in _CAST_BY_THE_ENGINE
            else tensor.num_elements * _BITS[tensor.dtype] // 8
            for tensor in self.tensors.values()
        )

    def sha256(self, progress: bool = True) -> str:
        """One digest over the files' names and bytes, in order."""
        digest = hashlib.sha256()
        total = sum(path.stat().st_size for path in self.files)
        shown = progress and total > 1 << 30
        with tqdm(total=total, desc="hash weights", unit="B", unit_scale=True, disable=not shown) as bar:
            for path in self.files:
                digest.update(path.name.encode())
                with open(path, "rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        bar.update(len(chunk))
        return digest.hexdigest()


def read_weights(folder: Path) -> Weights:
    """The complete weights of a model folder. UserError for a missing, truncated or unsafe file."""
    files, expected = _files(folder)
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, entry in _read_header(path).items():
            if name in tensors:
                raise UserError(str(path), name, f"a tensor given once, also in {tensors[name].file.name}")
            tensors[name] = Tensor(tuple(entry["shape"]), entry["dtype"], path)
    for name, file_name in expected.items():
        if name not in tensors or tensors[name].file.name != file_name:
            raise UserError(str(folder / INDEX_FILE), name, f"a tensor in {file_name}, as the index says")
    return Weights(tensors, files)


def _files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The safetensors files, and which of them the index expects each tensor in (nothing without index)."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            expected = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(str(index), str(error), "JSON with a weight_map") from error
        names = sorted(set(expected.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(str(index), name, "the plain name of a .safetensors file")
            if not (folder / name).is_file():
                raise UserError(str(folder), f"{name} is absent", f"all {len(names)} shards of {INDEX_FILE}")
        return tuple(folder / name for name in names), expected
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",), {}
    unsafe = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    found = f"only {unsafe[0]}" if unsafe else "no weights"
    reason = ", since the other formats can run code when opened" if unsafe else ""
    raise UserError(str(folder), found, f"model.safetensors or {INDEX_FILE}{reason}")


def _read_header(path: Path) -> dict[str, Any]:
    """The header's entries by tensor name, once its offsets fit the shapes and the file's size."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if size < 8 or header_bytes > size - 8:
                raise ValueError(f"{size} bytes, shorter than its header")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            bits = math.prod(entry["shape"]) * _BITS[entry["dtype"]]
            if start != end or (stop - start) * 8 != bits:
                raise ValueError(f"tensor {name} does not fill its place")
            end = stop
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(str(path), str(error), "a whole safetensors file") from error
    if 8 + header_bytes + end != size:
        raise UserError(str(path), f"{size} bytes", f"{8 + header_bytes + end} bytes, as its header says")
    return header


def save_weights(tensors: dict[str, Any], path: Path) -> None:
    """Write torch tensors as one safetensors file that other users may read."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves 0600, which a container's other uid cannot open
