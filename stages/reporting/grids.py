"""The tables of results: speed of every arm, both temperatures, both ways of measuring, the peer."""

from __future__ import annotations

from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult
from stages.reporting.cells import (
    Cell,
    Grid,
    Row,
    columns,
    mark,
    named,
    number,
    ordered,
    output,
    ratio,
    share,
)
from stages.reporting.costs import tokens_per_step

SPEED = ("Arm=", "Batch", "Speedup", "ms / token", "Output=", "GSM8K", "Latency", "Throughput", "TTFT ms")
NONE = Cell("–", "")


def speed(analysis: Analysis, best: ArmResult | None) -> Grid:
    """Every arm at the first temperature, then the peer, then what failed."""
    grid = Grid(columns(*SPEED))
    for result in ordered(analysis):
        metrics, accuracy = result.arm.metrics, result.accuracy
        reference = Cell("1.00×", 1.0, small="reference")
        span = f"{100 * accuracy.low:.0f} to {100 * accuracy.high:.0f} %" if accuracy.has_interval else ""
        gain = ratio(result.speedup, "good" if result.surely_faster else "")
        cells = [
            *named(result),
            reference if result.is_baseline else gain,
            number(metrics.time_per_token_ms),
            output(result),
            share(accuracy.value, span),
            NONE if result.is_baseline else ratio(result.latency),
            number(result.throughput, "{:.2f}×"),
            number(metrics.ttft_ms.mean, "{:.1f}"),
        ]
        grid.rows.append(Row(cells, mark(result, best)))
    for mode, found in analysis.peer.modes.items() if analysis.peer else ():
        cells = [*_peer_named(mode), NONE, number(found.time_per_token_ms)]  # its baseline is not ours
        cells += [_peer_output(analysis, mode), *[NONE] * (len(SPEED) - 5)]
        grid.rows.append(Row(cells, "peer"))
    for name, error in analysis.run.failed.items():
        cells = [Cell(name, name), NONE, Cell("FAILED", "", "bad", error), *[NONE] * (len(SPEED) - 3)]
        grid.rows.append(Row(cells, "changed"))
    return grid


def temperatures(analysis: Analysis) -> Grid:
    """Each arm's speedup, tokens a step and output at every temperature, side by side."""
    several = analysis.every if analysis.others else ()
    titles = [
        title
        for kind in ("Speedup", "Tokens / step", "Output")
        for one in several
        for title in [f"{kind} at {one.temperature:g}" + ("=" if kind == "Output" else "")]
    ]
    grid = Grid(columns("Arm=", "Batch", *titles))
    for result in ordered(analysis) if several else ():
        if result.is_baseline:
            continue
        same = [one.results[result.name.name] for one in several]
        cells = [ratio(one.speedup, "good" if one.surely_faster else "") for one in same]
        cells += [number(tokens_per_step(one.arm.metrics)) for one in same]
        cells += [_tested(one) for one in same]
        grid.rows.append(Row([*named(result), *cells], mark(result, None)))
    return grid


def _tested(result: ArmResult) -> Cell:
    cell, found = output(result), result.losslessness
    if found is None or found.p_value is None:
        return cell
    return Cell(cell.text, cell.value, cell.tone, f"p = {found.p_value:.3f}")


def interleaved(analysis: Analysis) -> Grid:
    """Speedup between separate engines beside that within one engine; the undrafted mode first."""
    grid = Grid(columns("Arm=", "Batch", "Separate engines", "Interleaved", "Interleaved ms / token"))
    for batch, side in analysis.interleaved.items():
        cells = [
            Cell("no drafts", "none"),
            Cell(str(batch), batch),
            NONE,
            Cell("1.00×", 1.0, small="reference"),
        ]
        grid.rows.append(Row([*cells, number(side.none_ms)]))
        for name, mode in side.modes.items():
            result = analysis.results.get(name)
            if result is None:
                continue
            cells = [ratio(result.speedup), ratio(mode.speedup), number(mode.time_per_token_ms)]
            grid.rows.append(Row([*named(result), *cells], mark(result, None)))
    return grid


def peers(analysis: Analysis) -> Grid:
    """The peer's two ways of generating, each against its own plain one and against our best arm."""
    grid = Grid(columns("Peer=", "ms / token", "Over its own plain", "Our best arm over it", "Output="))
    for mode, found in analysis.peer.modes.items() if analysis.peer else ():
        cells = [_peer_named(mode)[0], number(found.time_per_token_ms), _own(analysis, mode)]
        cells += [ratio(found.ours), _peer_output(analysis, mode)]
        grid.rows.append(Row(cells, "peer"))
    return grid


def _peer_named(mode: str) -> list[Cell]:
    name = f"HF {mode}"
    return [Cell(name, name, small="peer"), Cell("1", 1)]


def _own(analysis: Analysis, mode: str) -> Cell:
    """Over the peer's plain generation, which is no baseline of ours."""
    return Cell("1.00×", 1.0, small="reference") if mode == "plain" else ratio(analysis.peer.modes[mode].own)


def _peer_output(analysis: Analysis, mode: str) -> Cell:
    same = analysis.peer.same_output
    if mode == "plain" or same is None:
        return NONE
    words = "as its plain" if same == 1 else f"{same:.0%} as its plain"
    return Cell(words, words, "good" if same == 1 else "warn")
