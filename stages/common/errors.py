"""One line for the user: field, value, expectation. Anything else is a bug and keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """A mistake the user can mend. The text is one line: what, its value, what was expected."""

    def __init__(self, field: str, value: Any, expected: str):
        super().__init__(f"{field}: {value!r}; expected {expected}".replace("\n", " "))


def run_cli(main: Callable[[], None]) -> None:
    """Run a stage's `main`: a UserError becomes one line on stderr and exit status 2."""
    from stages.common.processes import Terminated, end_when_asked  # whose files may raise a UserError

    end_when_asked()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Terminated:
        print("terminated; no result was written", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("interrupted; no result was written", file=sys.stderr)
        sys.exit(130)
