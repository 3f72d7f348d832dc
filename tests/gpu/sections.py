"""Named sections, each run to its end or its traceback; JSON after every one, a table at the end."""

from __future__ import annotations

import json
import platform
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Sections:
    """Runs sections within `seconds`; one that fails is recorded and the next begins."""

    def __init__(self, out: Path, seconds: float):
        self.out, self.end = out, time.monotonic() + seconds
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.record: dict[str, Any] = {"identity": identity(), "sections": {}, "rows": self.rows}

    def run(self, name: str, section, needs_s: float = 30.0) -> None:
        """`section(add)` measures; `add(**row)` keeps a row of the table."""
        left = self.end - time.monotonic()
        begun = time.monotonic()
        if left < needs_s:
            self._close(name, "left out", 0.0, f"{left:.0f} s left; expected {needs_s:.0f}")
            return
        print(f"\n== {name} [{begun - self.began:.0f} s]", flush=True)
        try:
            section(lambda **row: self._add(name, row))
        except Exception:
            self._close(name, "failed", time.monotonic() - begun, traceback.format_exc())
        else:
            self._close(name, "done", time.monotonic() - begun, None)

    def _add(self, section: str, row: dict[str, Any]) -> None:
        self.rows.append({"section": section, **row})
        print("  " + "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)

    def _close(self, name: str, state: str, seconds: float, error: str | None) -> None:
        self.record["sections"][name] = {"state": state, "seconds": round(seconds, 1), "error": error}
        print(f"== {name}: {state} in {seconds:.0f} s" + (f"\n{error}" if error else ""), flush=True)
        self.out.write_text(json.dumps(self.record, indent=1))

    @property
    def ok(self) -> bool:
        return all(s["state"] == "done" for s in self.record["sections"].values()) and all(
            row.get("ok", True) for row in self.rows
        )

    def print_table(self) -> None:
        print(f"\n{self.record['identity']}")
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        cells = [columns, *([shown(row.get(key, "")) for key in columns] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        for name, section in self.record["sections"].items():
            print(f"{section['state']:8} {section['seconds']:6.1f} s  {name}")


def shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def identity() -> dict[str, str]:
    import torch

    versions = {
        name: torch.__version__ if name == "torch" else found(name) for name in ("torch", "triton", "vllm")
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return {
        "device": device,
        **versions,
        "python": platform.python_version(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def found(distribution: str) -> str | None:
    try:
        return version(distribution)
    except ModuleNotFoundError:
        return None
