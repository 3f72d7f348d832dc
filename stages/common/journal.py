"""What a measuring stage has finished, on disk, so that one that dies goes on after it.

    with journal_of(results, "chain-k3-b1", marks) as journal:
        piece = journal.once("greedy, repeat 0, part 0", measure)   # measured now, or read back
        write(folder, journal.resumed)
                                        # gone with the block's end; kept where the block raised

A piece is the least that ran undisturbed from its start to its end, so that its times count; what a death cut
short is measured again, whole. results/.journal/NAME.jsonl: the marks (stages.common.fingerprint) first, then
one line a piece, each on the disk before the next begins. A last line that was cut is dropped; a journal of
other marks is ignored with one line. No dependency or output of any stage: DVC neither hashes nor removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stages.common.errors import UserError

JOURNAL_FOLDER = ".journal"
Piece = dict[str, Any]


class Journal:
    """Finished pieces by key, in memory and, where there is a stream, on disk."""

    def __init__(self, stream: IO[bytes] | None = None, finished: Mapping[str, Piece] | None = None):
        self._stream = stream
        self._finished = dict(finished or {})
        self._from_journal = 0
        self._num_pieces = 0

    def once(self, key: str, make: Callable[[], Piece]) -> Piece:
        """The piece called `key`: as it was read back, else made now and kept. JSON's types only."""
        self._num_pieces += 1
        if key in self._finished:
            self._from_journal += 1
            return self._finished[key]
        return self.keep(key, make)

    def keep(self, key: str, make: Callable[[], Piece]) -> Piece:
        """Like `once`, for what is not a measurement and does not count as a piece."""
        if key not in self._finished:
            self._finished[key] = make()
            self._append([key, self._finished[key]])
        return self._finished[key]

    @property
    def resumed(self) -> dict[str, int] | None:
        """How many of the pieces asked for came from the journal; None of a run that was not disturbed."""
        if not self._from_journal:
            return None
        return {"pieces": self._num_pieces, "from_journal": self._from_journal}

    def _append(self, line: Any) -> None:
        if self._stream is None:
            return
        self._stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


@contextmanager
def journal_of(
    results: Path, name: str, marks: Mapping[str, str], why_not: str | None = None
) -> Iterator[Journal]:
    """The journal `name`; none is kept where there is a reason `why_not`. UserError if another run has it."""
    path = results / JOURNAL_FOLDER / f"{name}.jsonl"
    if why_not is not None:
        path.unlink(missing_ok=True)
        yield Journal()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(name, "being measured by another process", "one run at a time") from error
        journal = Journal(stream, _read(stream, path, dict(marks)))
        yield journal
        path.unlink(missing_ok=True)
        with suppress(OSError):  # other arms' journals are in it
            path.parent.rmdir()


def _read(stream: IO[bytes], path: Path, marks: dict[str, str]) -> dict[str, Piece]:
    """The finished pieces of the same marks; leaves the stream where the next line goes."""
    stream.seek(0)
    lines, end = [], 0
    for raw in stream:
        try:
            if not raw.endswith(b"\n"):
                break
            lines.append(json.loads(raw))
        except ValueError:  # the page that was being written when the power went
            break
        end += len(raw)
    if not lines or lines[0] != marks:
        if lines:
            known = lines[0] if isinstance(lines[0], dict) else {}
            changed = ", ".join(mark for mark in marks if known.get(mark) != marks[mark])
            print(f"{path} is ignored: it is of other {changed or 'marks'}", file=sys.stderr)
        stream.truncate(0)
        stream.write(json.dumps(marks).encode() + b"\n")
        return {}
    stream.truncate(end)
    finished = dict(lines[1:])
    if finished:
        print(f"{path.stem}: going on after {len(finished)} finished pieces of {path}", file=sys.stderr)
    return finished
