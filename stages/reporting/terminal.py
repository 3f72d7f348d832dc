"""The report on the terminal: a table at every temperature, and the recommendation."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.reporting.analysis import Analysis
from stages.reporting.cells import ordered
from stages.reporting.prose import peer_ratios
from stages.reporting.verdict import Verdict
from stages.reporting.words import fixed, lossless_words, times

KIND_STYLE = {"use": "bold green", "off": "bold red", "undecided": "bold yellow"}


def print_summary(console: Console, analysis: Analysis, verdict: Verdict, context: str) -> None:
    """One row an arm, then the peer, what failed, and the recommendation."""
    console.print(escape(context), style="dim")
    for one in analysis.every:
        table = _table(one, verdict)
        if one is analysis and analysis.peer:
            for mode, found in analysis.peer.modes.items():
                time = fixed(found.time_per_token_ms)
                table.add_row(f"transformers {mode}", "1", "–", "–", time, "–", "–")
        console.print(table)
        if one is analysis and (line := peer_ratios(analysis)):
            console.print(line, style="dim")
    for name, error in analysis.run.failed.items():
        console.print(f"[bold red]FAILED[/] {escape(name)}: {escape(error)}")
    console.print(f"\n[{KIND_STYLE[verdict.kind]}]{escape(verdict.sentence)}[/]")


def _table(one: Analysis, verdict: Verdict) -> Table:
    title = f"temperature {one.temperature:g}" if one.sampled else "greedy"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for name in ("batch", "speedup", f"{one.bootstrap.confidence:.0%}", "ms/token", "tok/step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("output")
    for result in ordered(one):
        metrics, ratio = result.arm.metrics, result.speedup
        length = metrics.speculation.mean_acceptance_length if metrics.speculation else None
        words = lossless_words(result)
        table.add_row(
            escape(result.name.label),
            str(result.name.max_num_seqs),
            "1.00×" if result.is_baseline else times(ratio.value if ratio else None),
            f"{ratio.low:.2f}–{ratio.high:.2f}" if ratio and ratio.has_interval else "–",
            fixed(metrics.time_per_token_ms),
            fixed(length),
            f"[bold red]{words}[/]" if result.lossless is False else words,
            style="green" if result is verdict.best else None,
        )
    return table
