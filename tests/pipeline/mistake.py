"""One row of the table of bad input, and what its rows share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BASELINE = ("baseline", "--max-num-seqs", "1")
CHAIN = ("draft_model", "--max-num-seqs", "2", "--num-speculative-tokens", "2")
TREE = ("draft_model", "--max-num-seqs", "2", "--use-tree")
GROW = ("grow_tree", "--max-num-seqs", "2")
PARQUET = "gsm8k/main/test-00000-of-00001.parquet"


@dataclass(frozen=True)
class Mistake:
    """A command in a project that is right but for one thing, and the line that it must answer with.

    The line starts with `line` after "error: ", where "..." stands for anything.
    """

    command: tuple[str, ...]
    line: str
    params: Mapping[str, Any] = field(default_factory=dict)  # fields that differ, by dotted name
    text: Callable[[str], str | bytes] | None = None  # of params.yaml, made of the right one
    spoil: Callable[[Path], Any] | None = None  # done to the project before the command
    pretend: Callable[[pytest.MonkeyPatch], None] | None = None  # another machine, in this process
    environment: Mapping[str, str] | None = (
        None  # of a process of its own; {project} and {hub} stand for theirs
    )


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Spoil: a file with this content."""

    def spoil(project: Path) -> None:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Spoil: a file cut off after `size` bytes."""
    return lambda project: os.truncate(project / name, size)


def config(model: str, **changes: Any) -> Callable[[Path], None]:
    """Spoil: other values in the config.json of local/<model>; None takes a key away."""

    def spoil(project: Path) -> None:
        path = project / "local" / model / "config.json"
        changed = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))

    return spoil
