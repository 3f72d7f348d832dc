"""One line for the user: field, value, expectation. Anything else is a bug and keeps its traceback."""

from __future__ import annotations

import argparse
import errno
import os
import reprlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_MAX_TEXT = 600
# What a disk or its rights do to a run; the user can mend it. A full one is not told by a file's name.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_OF_THE_DISK = _FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class _Shown(reprlib.Repr):
    """Values as short as a line needs: a file can nest lists that would fill the memory when written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxset, self.maxdict = 3, 8, 8, 8, 4
        self.maxstring = self.maxother = _MAX_TEXT

    def repr(self, value: Any) -> str:
        shown = super().repr(value)
        return shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}..."

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 256 else f"{value:#x}"[:20] + "..."


class UserError(Exception):
    """A mistake the user can mend. The text is one line: what, its value, what was expected."""

    def __init__(self, field: str, value: Any, expected: str):
        super().__init__(printable(f"{field}: {_Shown().repr(value)}; expected {expected}"))


def printable(text: str) -> str:
    """`text` in one line, without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


class Parser(argparse.ArgumentParser):
    """Command line flags, of which a wrong one is a line like any other mistake, not the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; see --help\n")


def run_cli(main: Callable[[], None]) -> None:
    """Run a stage's `main`: a UserError becomes one line on stderr and exit status 2.

    So does a folder that cannot be written and a disk that is full.
    """
    from stages.common.processes import Terminated, end_when_asked  # whose files may raise a UserError

    end_when_asked()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (_OF_THE_DISK if error.filename else _FULL):
            raise
        place = os.fsdecode(error.filename or "disk")
        line = UserError(place, os.strerror(error.errno), "a place to write, with room on its disk")
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except Terminated:
        print("terminated; no result was written", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("interrupted; no result was written", file=sys.stderr)
        sys.exit(130)
