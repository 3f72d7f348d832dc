"""The tables behind the results: outputs, first divergences, why it is faster, what may be doubted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from stages.reporting.drift import pass_spread, probe_spread
from stages.reporting.lossless import Divergence
from stages.reporting.statistics import Ratio
from stages.reporting.words import percent

MAX_DIVERGENCES = 40  # rows shown; all of them count
Decode = Callable[[int], str | None]


def outputs(analysis: Analysis) -> Grid:
    """Identity of greedy outputs, or the distribution test of sampled ones, at every temperature.

    A greedy baseline's own row compares its repeats with its first.
    """
    titles = ("Arm=", "Batch", "Temperature", "Verdict=", "Outputs", "Identical", "Near-ties", "Unexplained")
    grid = Grid(columns(*titles, "Largest gap", "p value"))
    for one in analysis.every:
        for result in ordered(one):
            found = result.losslessness
            if found is None:
                continue
            gaps = [item.gap for item in found.divergences if item.gap is not None]
            compared, parted = found.num_compared, len(found.divergences)
            counts: list[int | None] = [
                compared - parted,
                parted - found.num_unexplained,
                found.num_unexplained,
            ]
            if one.sampled:
                counts = [None] * 3
            cells = [*named(result), number(one.temperature, "{:g}"), output(result)]
            cells += [number(count, "{:d}") for count in (compared, *counts)]
            cells += [number(max(gaps, default=None), "{:.4f}"), number(found.p_value, "{:.3f}")]
            grid.rows.append(Row(cells, mark(result, None)))
    return grid


@dataclass(frozen=True)
class _Found:
    result: ArmResult
    first: Divergence
    repeats: list[int]


def divergences(analysis: Analysis, decode: Decode) -> Grid:
    """Unexplained ones first, at most MAX_DIVERGENCES; repeats that part alike share a row.

    `decode` gives a token's text, or None: then its id is shown.
    """
    titles = ("Arm=", "Batch", "Prompt", "Repeats=", "Position", "Baseline=", "Arm's=", "Gap", "Why=")
    grid = Grid(columns(*titles, "Baseline text=", "Arm's text="))
    for found in sorted(_merged(analysis), key=lambda one: one.first.explained)[:MAX_DIVERGENCES]:
        item, repeats = found.first, ", ".join(map(str, found.repeats))
        cells = [
            *named(found.result),
            Cell(str(item.prompt_index), item.prompt_index),
            Cell(repeats, repeats),
        ]
        cells += [Cell(str(item.position), item.position)]
        cells += [_token(token, decode) for token in (item.baseline_token, item.arm_token)]
        why = _reason(item)
        cells += [number(item.gap, "{:.4f}"), Cell(why, why, "good" if item.explained else "bad")]
        cells += [Cell(item.baseline_text), Cell(item.arm_text)]
        grid.rows.append(Row(cells, "" if item.explained else "changed"))
    return grid


def _merged(analysis: Analysis) -> list[_Found]:
    found: dict[tuple, _Found] = {}
    for one in analysis.every:
        for result in ordered(one):
            for item in result.losslessness.divergences if result.losslessness else ():
                place = (item.prompt_index, item.position, item.baseline_token, item.arm_token)
                key = (one.temperature, result.name, *place)
                found.setdefault(key, _Found(result, item, [])).repeats.append(item.repeat)
    return list(found.values())


def _reason(item: Divergence) -> str:
    if item.explained:
        return "near-tie"
    if item.arm_token is None or item.baseline_token is None:
        return "one output ended"
    if item.gap is None:
        return "no gap recorded"
    return "gap too wide" if item.is_candidate else "not among the best"


def _token(token: int | None, decode: Decode) -> Cell:
    if token is None:
        return Cell("end", "end")
    text = decode(token)
    return Cell(str(token), token) if text is None else Cell(f"“{text}”", text, small=str(token))


def why(analysis: Analysis, best: ArmResult | None) -> Grid:
    """Tokens a step against what a step costs."""
    titles = ("Arm=", "Batch", "Tokens / step", "Step cost", "Explained", "Measured", "Draft efficiency")
    grid = Grid(columns(*titles, "Off first path", "Overhead"))
    for result in ordered(analysis):
        speculation = result.arm.metrics.speculation
        if speculation is None:
            continue
        cells = [
            *named(result),
            number(tokens_per_step(result.arm.metrics)),
            number(result.step_ratio, "{:.2f}×"),
            number(result.explained, "{:.2f}×"),
            ratio(result.speedup),
            share(speculation.draft_efficiency),
            number(speculation.off_chain_accepted_tokens, "{:,d}"),
            share(result.step.overhead_share if result.step else None),
        ]
        grid.rows.append(Row(cells, mark(result, best)))
    return grid


def predicted(analysis: Analysis) -> Grid:
    """The calibration's time per token beside the measured one; marked where their intervals lie apart."""
    titles = ("Arm=", "Batch", "Predicted ms / token", "Measured ms / token", "Error", "Predicted speedup")
    grid = Grid(columns(*titles, "Measured speedup"))
    for result in ordered(analysis):
        found = result.predicted
        if found is None:
            continue
        tone = "warn" if found.outside else ""
        cells = [
            *named(result),
            _milliseconds(found.foretold),
            _milliseconds(found.measured),
            number(found.error, "{:+.0%}", "outside" if found.outside else "", tone),
            number(found.speedup, "{:.2f}×"),
            ratio(result.speedup),
        ]
        grid.rows.append(Row(cells))
    return grid


def _milliseconds(time: Ratio) -> Cell:
    span = f"{time.low:.2f} to {time.high:.2f}" if time.has_interval else ""
    return number(time.value, small=span)


def trust(analysis: Analysis) -> Grid:
    """The stated interval beside its parts, and what moved besides the arm."""
    titles = ("Arm=", "Batch", "Speedup as stated", "Over prompts alone", "Over its own control")
    grid = Grid(columns(*titles, "Undrafted / baseline", "Between passes", "Bandwidth probe"))
    for result in ordered(analysis):
        cells = [
            *named(result),
            ratio(result.speedup, "warn" if result.drifted else ""),
            ratio(result.over_prompts),
            ratio(result.over_control),
            ratio(result.undrafted.ratio if result.undrafted else None),
            *(_spread(found) for found in (pass_spread(result.arm), probe_spread(result.arm))),
        ]
        grid.rows.append(Row(cells))
    return grid


def _spread(value: float | None) -> Cell:
    return Cell("–", "") if value is None else Cell(percent(value, 1), value)


def hardware(analysis: Analysis) -> Grid:
    """Every arm's time against what the machine could do without speculation."""
    titles = ("Arm=", "Batch", "ms / token", "Floor by memory", "Floor by matmul", "Floor / measured")
    grid = Grid(columns(*titles, "Reading weights"))
    for result in ordered(analysis):
        cells = [
            *named(result),
            number(result.arm.metrics.time_per_token_ms),
            number(result.floor.memory_ms),
            number(result.floor.matmul_ms),
            share(result.floor_share),
            share(result.roofline_share),
        ]
        grid.rows.append(Row(cells))
    return grid
