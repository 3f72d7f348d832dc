"""What a measuring stage prints when it is done: the figures, and a bar for every position's acceptance."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

BAR_WIDTH = 40


def show(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Print one arm's metrics for people, at every temperature."""
    console = console or Console(highlight=False)
    figures = {str(metrics["temperature"]): metrics, **metrics["at_temperature"]}
    for degree, own in figures.items():
        title = f"{metrics['arm']} {metrics['key']}, temperature {float(degree):g}"
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in [*_head(metrics), *_lines(own)]:
            table.add_row(name, value)
        console.print(table)
        if own["speculation"]:
            console.print("acceptance by position, of all drafts")
            for position, rate in own["speculation"]["acceptance_rate_per_position"].items():
                console.print(f"{position:>4} {bar(rate or 0.0)} {rate or 0.0:.3f}")
    if control := metrics.get("control"):
        console.print(f"undrafted, in the same engine: {control['time_per_token_ms']:.2f} ms a token")


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """`share` of 0 to 1 as a bar of blocks and dots."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "█" * filled + "·" * (width - filled)


def _head(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("device", f"{metrics['device']}, {metrics['dtype']}, max_num_seqs {metrics['max_num_seqs']}"),
        ("data", f"{metrics['num_prompts']} prompts x {metrics['repeats']}, {metrics['dataset_source']}"),
    ]


def _lines(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What depends on the passes of one temperature."""
    lines = [
        ("time per token", f"{metrics['time_per_token_ms']:.2f} ms"),
        ("throughput", f"{metrics['throughput_tokens_per_s']:.1f} tokens/s"),
        *((name[:-3].upper(), _spread(metrics[name])) for name in ("ttft_ms", "tpot_ms", "e2e_ms")),
        ("GSM8K accuracy", f"{metrics['gsm8k_accuracy']:.3f}"),
    ]
    if metrics["roofline_share"] is not None:
        lines.append(("share of the roofline", f"{metrics['roofline_share']:.2f}"))
    if metrics["step_ms"]:
        lines.append(
            ("a step", ", ".join(f"{part} {ms:.2f}" for part, ms in metrics["step_ms"].items()) + " ms")
        )
    speculation = metrics["speculation"]
    if speculation and speculation["num_drafts"]:
        lines += [
            ("tokens a step", f"{speculation['mean_acceptance_length']:.2f} (bonus token counted)"),
            ("draft efficiency", f"{speculation['draft_efficiency']:.3f} of the drafted tokens accepted"),
            ("off the first path", f"{speculation['off_chain_accepted_tokens']} tokens"),
        ]
    return lines


def _spread(values: dict[str, float | None]) -> str:
    if values["mean"] is None:
        return "n/a"
    return f"mean {values['mean']:.1f}, p50 {values['p50']:.1f}, p99 {values['p99']:.1f} ms"
