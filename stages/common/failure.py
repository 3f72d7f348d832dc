"""What a run that failed leaves behind: failed.json in place of its figures, so that a report can name it.

    with failure_noted(results / "chain/k3-b1"):
        ...                                       # everything from the engine's start on

Mistakes in the input are found before and leave nothing.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.common.errors import UserError
from stages.common.files import atomic_folder, write_json

FAILED_FILE = "failed.json"
_MAX_LENGTH = 300


@contextmanager
def failure_noted(folder: Path) -> Iterator[None]:
    """Let an error pass, but first make `folder` hold failed.json with the error in one line, alone."""
    try:
        yield
    except Exception as error:
        line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        try:
            with atomic_folder(folder) as failed:
                write_json(failed / FAILED_FILE, {"error": textwrap.shorten(line, _MAX_LENGTH)})
        except OSError as other:  # such as a full disk, which may be why the run failed
            print(f"{folder / FAILED_FILE} could not be written: {other}", file=sys.stderr)
        raise
