"""Files of the hub's cache are what the hub named them by: a wrong byte on the way, or since, does not pass.

    check_blobs(Path("~/.cache/huggingface/hub/models--O--N/snapshots/COMMIT"), Path("models/.checked.json"))

The hub's client compares sizes only. A file of a snapshot links to a blob that has the hub's digest for its
name: the SHA-256 of large files, git's SHA-1 of others. Each blob is hashed once; the record holds its size
and time, so that one changed since is hashed again.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tqdm import tqdm

from stages.common.errors import UserError
from stages.common.files import read_json, write_json

_CHUNK_BYTES = 1 << 24


def check_blobs(snapshot: Path, record: Path) -> None:
    """UserError for a blob of other bytes than its name says; it is removed, so that it is fetched anew."""
    known = _read(record)
    fresh = {}
    for link in sorted(snapshot.iterdir()):
        blob = link.resolve()
        if not link.is_symlink() or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", blob.name):
            continue  # a cache without links, or of another store: nothing to compare with
        stat = blob.stat()
        seen = [stat.st_size, stat.st_mtime_ns]
        if known.get(str(blob)) == seen:
            continue
        if (found := _digest(blob, stat.st_size)) != blob.name:
            link.unlink()
            blob.unlink()
            expected = f"{blob.name}, as the hub says; it was removed, and the next run fetches it anew"
            raise UserError(f"digest of {link}", found, expected)
        fresh[str(blob)] = seen
    if fresh:
        write_json(record, {**known, **fresh})


def _read(record: Path) -> dict[str, list[int]]:
    try:
        return read_json(record)
    except (OSError, ValueError):
        return {}


def _digest(blob: Path, size: int) -> str:
    """By the kind of digest that the blob's name is."""
    is_large = len(blob.name) == 64
    digest = hashlib.sha256() if is_large else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    shown = size > 1 << 30
    with (
        open(blob, "rb") as stream,
        tqdm(total=size, desc=f"check {blob.name[:8]}", unit="B", unit_scale=True, disable=not shown) as bar,
    ):
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
