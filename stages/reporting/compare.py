"""Two summaries side by side: what --compare prints.

    compare(console, Path("results"), "main")

Figures of the same temperature stand beside each other; settings that differ are named first. A change of a
time is coloured only where it is more than engines of these two runs lay apart doing the same work.
"""

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
from stages.reporting.words import fixed, times

Summary = dict[str, Any]
LEAST_APART = 1.02  # where a summary does not know its drift


def compare(console: Console, results: Path, revision: str) -> None:
    """Print summary.json of a git revision beside today's, arm by arm. Raises UserError."""
    path = results / "summary.json"
    if not path.is_file():
        raise UserError("--results", str(path), "an existing file; run `python -m stages.report` first")
    before, after = _committed(path, revision), read_json(path)
    _print_settings(console, before, after, revision)
    olds, news = _by_temperature(before), _by_temperature(after)
    common = [degree for degree in news if degree in olds]
    first = (next(iter(olds)), next(iter(news)))
    apart = max(one.get("drift", {}).get("factor") or LEAST_APART for one in (before, after))
    for old, new in [(degree, degree) for degree in common] or [first]:
        title = f"{revision} → now" + (f", temperature {old} → {new}" if old != new else _at(old))
        console.print(_table(olds[old], news[new], title, apart))
        console.print(escape(_acceptance(before, after, olds[old], news[new], revision)), style="dim")
    console.print(f"Times within a factor {apart:.2f} of each other may differ by drift alone.", style="dim")
    console.print(f"\n{escape(revision)}: {escape(str(before.get('recommendation', 'no recommendation')))}")
    console.print(f"now: {escape(after['recommendation'])}")


def _at(degree: str) -> str:
    return f", temperature {degree}" if degree else ""


def _by_temperature(summary: Summary) -> dict[str, Summary]:
    """Arms by temperature, the main one first; '' where a summary does not say which it is."""
    main = summary.get("settings", {}).get("temperature")
    arms = {"" if main is None else f"{float(main):g}": summary.get("arms", {})}
    others = summary.get("at_temperature", {})
    return arms | {f"{float(degree):g}": one["arms"] for degree, one in others.items()}


def _print_settings(console: Console, before: Summary, after: Summary, revision: str) -> None:
    old, new = before.get("settings", {}), after.get("settings", {})
    for name in dict.fromkeys([*old, *new]):
        if old and old.get(name) != new.get(name):
            change = f"{name}: {old.get(name)} ({revision}) → {new.get(name)} (now)"
            console.print(escape(change), style="yellow")


def _table(before: Summary, after: Summary, title: str, apart: float) -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    for name in ("speedup", "now", "ms/token", "", "tok/step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("output", overflow="fold")
    for name in dict.fromkeys([*before, *after]):
        table.add_row(escape(name), *_difference(before.get(name), after.get(name), apart))
    return table


def _acceptance(before: Summary, after: Summary, old: Summary, new: Summary, revision: str) -> str:
    """Which of two runs accepts more, over the arms of both; named by draft sampling where that differs."""
    key = "mean_acceptance_length"
    pairs = [(old[name].get(key), new[name].get(key)) for name in old if name in new]
    known = [pair for pair in pairs if None not in pair]
    if not known:
        return "Tokens a step cannot be compared: no arm with drafts is in both."
    ways = [one.get("settings", {}).get("draft_sampling") for one in (before, after)]
    names = (
        [f"{way} drafts" for way in ways] if None not in ways and ways[0] != ways[1] else [revision, "now"]
    )
    means = [sum(values) / len(known) for values in zip(*known, strict=True)]
    said = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(names, means, strict=True))
    if abs(means[0] - means[1]) < 0.005:
        return f"Tokens a step, mean of {len(known)} arms: {said}; neither accepts more."
    return f"Tokens a step, mean of {len(known)} arms: {said}; {names[means[1] > means[0]]} accept more."


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


def _difference(old: dict[str, Any] | None, new: dict[str, Any] | None, apart: float) -> list[str]:
    if new is None:
        return ["gone"]
    if "failed" in new:
        return ["[bold red]FAILED[/]", *[""] * 4, escape(new["failed"])]
    if old is None or "failed" in old:
        old = {}
    bounds = (new.get("speedup_low"), new.get("speedup_high"))
    times_old, times_new = old.get("time_per_token_ms"), new.get("time_per_token_ms")
    lengths = [one.get("mean_acceptance_length") for one in (old, new)]
    return [
        _pair(times(old.get("speedup")) if old else "new", times(new.get("speedup"))),
        "" if None in bounds else f"{bounds[0]:.2f}–{bounds[1]:.2f}",
        _pair(fixed(times_old), fixed(times_new)),
        _change(times_old, times_new, apart),
        "" if lengths == [None, None] else _pair(*map(fixed, lengths)),
        "[bold red]NOT LOSSLESS[/]"
        if new.get("lossless") is False
        else str(new.get("verdict") or "").replace("_", " "),
    ]


def _change(old: float | None, new: float | None, apart: float) -> str:
    """Of time per token: negative is faster; dim where drift alone may do it."""
    if not old or not new:
        return ""
    colour = "red" if new / old > apart else "green" if old / new > apart else "dim"
    return f"[{colour}]{new / old - 1:+.1%}[/]"


def _pair(old: str, new: str) -> str:
    return f"{old}→{new}"
