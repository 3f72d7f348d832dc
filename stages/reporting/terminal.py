"""The report on the terminal: a table, the recommendation, and the difference between two summaries."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.common.errors import UserError
from stages.common.files import read_json
from stages.reporting.analysis import Analysis
from stages.reporting.verdict import Verdict, lossless_words, times

KIND_STYLE = {"use": "bold green", "off": "bold red", "undecided": "bold yellow"}


def print_summary(console: Console, analysis: Analysis, verdict: Verdict, context: str) -> None:
    """One row an arm, then the recommendation."""
    level = f"{analysis.bootstrap.confidence:.0%}"
    table = Table(title=escape(context), title_justify="left", title_style="dim", box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for title in ("batch", "speedup", level, "ms/token", "tok/step"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("output")
    for result in sorted(analysis.results.values(), key=lambda one: one.name.max_num_seqs):
        metrics, ratio = result.arm.metrics, result.speedup
        length = metrics.speculation.mean_acceptance_length if metrics.speculation else None
        table.add_row(
            escape(result.name.label),
            str(result.name.max_num_seqs),
            "1.00×" if result.is_baseline else times(ratio.value if ratio else None),
            f"{ratio.low:.2f}–{ratio.high:.2f}" if ratio and ratio.has_interval else "–",
            _number(metrics.time_per_token_ms),
            _number(length),
            f"[bold red]{lossless_words(result)}[/]" if result.lossless is False else lossless_words(result),
            style="green" if result is verdict.best else None,
        )
    console.print(table)
    for name, error in analysis.run.failed.items():
        console.print(f"[bold red]FAILED[/] {escape(name)}: {escape(error)}")
    console.print(f"\n[{KIND_STYLE[verdict.kind]}]{escape(verdict.sentence)}[/]")


def compare(console: Console, results: Path, revision: str) -> None:
    """Print summary.json of a git revision beside today's, arm by arm. Raises UserError."""
    path = results / "summary.json"
    if not path.is_file():
        raise UserError("--results", str(path), "an existing file; run `python -m stages.report` first")
    before, after = _committed(path, revision), read_json(path)
    table = Table("arm", title=f"{escape(revision)} → now", title_justify="left", box=None, pad_edge=False)
    for title in ("speedup", "", "interval now", "ms/token", "", "change"):
        table.add_column(title, justify="right")
    table.add_column("output")
    for name in dict.fromkeys([*before.get("arms", {}), *after["arms"]]):
        old, new = before.get("arms", {}).get(name), after["arms"].get(name)
        table.add_row(escape(name), *_difference(old, new))
    console.print(table)
    console.print(f"\n{escape(revision)}: {escape(str(before.get('recommendation', 'no recommendation')))}")
    console.print(f"now: {escape(after['recommendation'])}")


def _committed(path: Path, revision: str) -> dict[str, Any]:
    if revision.startswith("-"):
        raise UserError("--compare", revision, "a git revision")
    command = ["git", "-C", str(path.parent), "show", f"{revision}:./{path.name}"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise UserError("--compare", revision, "git on the PATH") from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            "--compare", revision, f"a git revision with {path} ({error.stderr.strip()})"
        ) from error
    try:
        return json.loads(shown.stdout)
    except ValueError as error:
        raise UserError("--compare", revision, f"valid JSON in its {path.name}") from error


def _difference(old: dict[str, Any] | None, new: dict[str, Any] | None) -> list[str]:
    if new is None:
        return ["gone"]
    if "failed" in new:
        return ["[bold red]FAILED[/]", escape(new["failed"])]
    if old is None or "failed" in old:
        old = {}
    bounds = (new.get("speedup_low"), new.get("speedup_high"))
    times_old, times_new = old.get("time_per_token_ms"), new.get("time_per_token_ms")
    return [
        times(old.get("speedup")) if old else "new",
        times(new.get("speedup")),
        "" if None in bounds else f"{bounds[0]:.2f} to {bounds[1]:.2f}",
        _number(times_old),
        _number(times_new),
        _change(times_old, times_new),
        "[bold red]NOT LOSSLESS[/]"
        if new.get("lossless") is False
        else str(new.get("verdict") or "").replace("_", " "),
    ]


def _change(old: float | None, new: float | None) -> str:
    """Of time per token: negative is faster."""
    if not old or new is None:
        return ""
    share = new / old - 1
    return f"[{'red' if share > 0.02 else 'green' if share < -0.02 else 'dim'}]{share:+.1%}[/]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
