"""Files that are whole or absent: write beside, flush to disk, rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.common.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write; rename it into place only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path.name), suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it replaces `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=temporary_prefix(path.name), suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_prefix(name: str) -> str:
    """What a temporary file or folder begins with, so that `sweep` knows whose it is; they end in .tmp."""
    return f".{name}.{os.getpid()}-"


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`."""
    for path in folder.glob(".*.tmp"):
        owner = re.fullmatch(r"\..*\.(\d+)-[^.]*\.tmp", path.name)
        if owner is None or _is_alive(int(owner[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), stable order of insertion, two spaces."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_object(path: Path, expected: str, field: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. UserError, naming `field` or the file, and `expected` of it."""
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(field or str(path), str(error), expected) from error
    if not isinstance(found, dict):
        raise UserError(field or str(path), found, expected)
    return found


def require_room(folder: Path, num_bytes: int = 64 << 20) -> None:
    """Raise UserError unless `folder`, existing or to be made, can be written and its disk has room."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(str(folder), f"{there} is a file", "a folder to write to")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(str(folder), error.strerror, "a folder that can be written") from error
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        expected = f"at least {num_bytes / 2**20:.0f} MiB to write results"
        raise UserError(f"disk of {folder}", f"{free / 2**20:.0f} MiB free", expected)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
