"""Say in one line, and with exit status 2, that another run is under way in this folder.

    python -m stages.idle && cp profiles/sweep.yaml params.yaml && dvc repro

DVC refuses a second `dvc repro` on its own; this is for what comes before it, such as another params.yaml,
which would change under the first run's feet. By DVC's own record of what it reads and writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from stages.common.errors import UserError, run_cli
from stages.common.files import read_json

RWLOCK = Path(".dvc/tmp/rwlock")


def main() -> None:
    try:
        record = read_json(RWLOCK)
    except (OSError, ValueError):  # no run yet, or one that died while writing; DVC says what it thinks of it
        return
    for one in holders(record):
        if psutil.pid_exists(one["pid"]):
            raise UserError("this folder", f"{one['cmd']} (PID {one['pid']}) is running", "one run at a time")


def holders(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Every {pid, cmd} that reads or writes something."""
    readers = [one for each in record.get("read", {}).values() for one in each]
    return readers + [one for one in record.get("write", {}).values() if one]


if __name__ == "__main__":
    run_cli(main)
