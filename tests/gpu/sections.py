"""Named sections, each run to its end or its traceback; JSON after every one, a table at the end.

Each section runs in a process of its own, forked after the imports: what one leaves on the GPU, or does to
it, never reaches the next.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

GRACE_S = 20.0  # beyond the limit, for a section to end by itself


def command_line(description: str, seconds: float) -> argparse.ArgumentParser:
    """The flags that every script has: where its record goes, and how long its sections may take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORDS", help="sections named with one of them"
    )
    return parser


class Sections:
    """Runs sections within `seconds`; one that fails is recorded and the next begins."""

    def __init__(self, out: Path, seconds: float, only: Sequence[str] = ()):
        self.out, self.end, self.only = out, time.monotonic() + seconds, only
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.record: dict[str, Any] = {"identity": identity(), "sections": {}, "rows": self.rows}

    def run(self, name: str, section, needs_s: float = 30.0) -> Any:
        """`section(add)` measures; `add(**row)` keeps a row of the table. Returns what the section does."""
        if self.only and not any(words in name for words in self.only):
            return None
        left = self.end - time.monotonic()
        begun = time.monotonic()
        if left < needs_s:
            self._close(name, "left out", 0.0, f"{left:.0f} s left; expected {needs_s:.0f}")
            return None
        print(f"\n== {name} [{begun - self.began:.0f} s]", flush=True)
        fork = multiprocessing.get_context("fork")
        received, sent = fork.Pipe(duplex=False)
        process = fork.Process(target=_run, args=(section, sent))
        process.start()
        sent.close()
        state, error, result = "failed", "the process died", None
        while received.poll(max(0.0, begun + left + GRACE_S - time.monotonic())):
            try:
                kind, content = received.recv()
            except EOFError:
                break
            if kind == "row":
                self._add(name, content)
            elif kind == "result":
                state, error, result = "done", None, content
            else:
                error = content
        else:
            error = "out of time"
        process.join(10)
        if process.is_alive():
            process.kill()
        self._close(name, state, time.monotonic() - begun, error)
        return result

    def _add(self, section: str, row: dict[str, Any]) -> None:
        self.rows.append({"section": section, **row})
        print("  " + "  ".join(f"{key} {shown(value)}" for key, value in flat(row).items()), flush=True)

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
        rows = [flat(row) for row in self.rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [columns, *([shown(row.get(key, "")) for key in columns] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        for name, section in self.record["sections"].items():
            print(f"{section['state']:8} {section['seconds']:6.1f} s  {name}")


def _run(section, sent) -> None:
    """The child's half of `Sections.run`."""
    try:
        sent.send(("result", section(lambda **row: sent.send(("row", row)))))
    except Exception:
        sent.send(("error", traceback.format_exc()))
    sent.close()
    sys.stdout.flush()
    os._exit(0)  # nothing of an engine's own clean-up is of use here, and some of it hangs


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row fits into a line."""
    return {key: value for key, value in row.items() if not isinstance(value, dict)}


def shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def identity() -> dict[str, str]:
    import torch

    versions = {
        name: torch.__version__ if name == "torch" else found(name) for name in ("torch", "triton", "vllm")
    }
    return {
        "device": gpu_names() or platform.processor() or "cpu",
        **versions,
        "python": platform.python_version(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def gpu_names() -> str:
    """By the driver's library: CUDA itself must not be touched before the sections fork."""
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return ", ".join(pynvml.nvmlDeviceGetName(handle) for handle in handles)
    except pynvml.NVMLError:
        return ""


def found(distribution: str) -> str | None:
    try:
        return version(distribution)
    except ModuleNotFoundError:
        return None
