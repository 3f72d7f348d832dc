"""The report on the terminal: a table and the recommendation."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.reporting.analysis import Analysis
from stages.reporting.verdict import Verdict
from stages.reporting.words import fixed, lossless_words, times

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
            fixed(metrics.time_per_token_ms),
            fixed(length),
            f"[bold red]{lossless_words(result)}[/]" if result.lossless is False else lossless_words(result),
            style="green" if result is verdict.best else None,
        )
    if analysis.peer:
        for mode, found in analysis.peer.modes.items():
            own = "1.00×" if mode == "plain" else times(found.own.value)
            table.add_row(
                f"transformers {mode}", "1", f"{own} *", "–", fixed(found.time_per_token_ms), "–", "–"
            )
    console.print(table)
    if analysis.peer and analysis.peer.modes:
        console.print("* a peer, over its own plain generation", style="dim")
    for name, error in analysis.run.failed.items():
        console.print(f"[bold red]FAILED[/] {escape(name)}: {escape(error)}")
    console.print(f"\n[{KIND_STYLE[verdict.kind]}]{escape(verdict.sentence)}[/]")
