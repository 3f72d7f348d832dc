"""The tables of the report as cells: a text, a value to sort by, a tone. HTML and Markdown share them."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.reporting.analysis import Analysis, ArmResult
from stages.reporting.costs import tokens_per_step
from stages.reporting.statistics import Ratio
from stages.reporting.verdict import interval, lossless_words, percent, times

MAX_DIVERGENCES = 40  # rows shown; all of them count


@dataclass(frozen=True)
class Column:
    title: str
    is_text: bool = False


@dataclass(frozen=True)
class Cell:
    """`value` is what a sort compares; '' sorts last."""

    text: str
    value: float | str = ""
    tone: str = ""
    small: str = ""


@dataclass(frozen=True)
class Row:
    cells: list[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)


def _columns(*titles: str) -> list[Column]:
    """A title that ends in '=' is of a column of words."""
    return [Column(title.removesuffix("="), title.endswith("=")) for title in titles]


def _number(value: float | None, form: str = "{:.2f}", small: str = "", tone: str = "") -> Cell:
    return Cell("–", "") if value is None else Cell(form.format(value), value, tone, small)


def _share(value: float | None, small: str = "", tone: str = "") -> Cell:
    return Cell(percent(value), "" if value is None else value, tone, small)


def _named(result: ArmResult) -> list[Cell]:
    return [
        Cell(result.name.label, result.name.label),
        Cell(str(result.name.max_num_seqs), result.name.max_num_seqs),
    ]


def _ordered(analysis: Analysis) -> list[ArmResult]:
    return sorted(analysis.results.values(), key=lambda result: result.name.max_num_seqs)


def _mark(result: ArmResult, best: ArmResult | None) -> str:
    if result.lossless is False:
        return "changed"
    return "best" if result is best else ""


def _ratio(ratio: Ratio | None, tone: str = "") -> Cell:
    if ratio is None or ratio.value is None:
        return Cell("–", "")
    return Cell(times(ratio.value), ratio.value, tone, interval(ratio) if ratio.has_interval else "")


def speed(analysis: Analysis, best: ArmResult | None) -> Grid:
    columns = (
        "Arm=",
        "Batch",
        "Speedup",
        "ms / token",
        "Output=",
        "GSM8K",
        "Latency",
        "Throughput",
        "TTFT ms",
    )
    grid = Grid(_columns(*columns))
    for result in _ordered(analysis):
        metrics, accuracy = result.arm.metrics, result.accuracy
        reference = Cell("1.00×", 1.0, small="reference")
        span = f"{100 * accuracy.low:.0f} to {100 * accuracy.high:.0f} %" if accuracy.has_interval else ""
        cells = [
            *_named(result),
            reference
            if result.is_baseline
            else _ratio(result.speedup, "good" if result.surely_faster else ""),
            _number(metrics.time_per_token_ms),
            _output(result),
            _share(accuracy.value, span),
            Cell("–") if result.is_baseline else _ratio(result.latency),
            _number(result.throughput, "{:.2f}×"),
            _number(metrics.ttft_ms.mean, "{:.1f}"),
        ]
        grid.rows.append(Row(cells, _mark(result, best)))
    for name, error in analysis.run.failed.items():
        cells = [
            Cell(name, name),
            Cell("–"),
            Cell("FAILED", "", "bad", error),
            *[Cell("–")] * (len(columns) - 3),
        ]
        grid.rows.append(Row(cells, "changed"))
    return grid


def _output(result: ArmResult) -> Cell:
    words = lossless_words(result)
    tone = {True: "good", False: "bad", None: ""}[result.lossless]
    return Cell(words, words, tone)


def outputs(analysis: Analysis) -> Grid:
    """Identity of outputs; the baseline's own row compares its repeats with its first."""
    columns = ("Arm=", "Batch", "Verdict=", "Outputs", "Identical", "Near-ties", "Unexplained", "Largest gap")
    grid = Grid(_columns(*columns, *(["p value"] if analysis.sampled else [])))
    for result in _ordered(analysis):
        found = result.losslessness
        if found is None:
            continue
        gaps = [item.gap for item in found.divergences if item.gap is not None]
        compared, parted = found.num_compared, len(found.divergences)
        ids = [parted - found.num_unexplained, found.num_unexplained]
        counts = [compared, compared - parted, *ids] if not analysis.sampled else [compared, None, None, None]
        cells = [*_named(result), _output(result), *(_number(count, "{:d}") for count in counts)]
        cells.append(_number(max(gaps, default=None), "{:.4f}"))
        if analysis.sampled:
            cells.append(_number(found.p_value, "{:.3f}"))
        grid.rows.append(Row(cells, _mark(result, None)))
    return grid


def divergences(analysis: Analysis) -> Grid:
    """Unexplained ones first, at most MAX_DIVERGENCES."""
    columns = (
        "Arm=",
        "Batch",
        "Prompt",
        "Repeat",
        "Position",
        "Baseline",
        "Arm's",
        "Gap",
        "Why=",
        "Baseline text=",
    )
    grid = Grid(_columns(*columns, "Arm's text="))
    found = [
        (result, item)
        for result in _ordered(analysis)
        if result.losslessness
        for item in result.losslessness.divergences
    ]
    for result, item in sorted(found, key=lambda pair: pair[1].explained)[:MAX_DIVERGENCES]:
        if item.explained:
            why = "near-tie"
        elif item.arm_token is None or item.baseline_token is None:
            why = "one output ended"
        elif item.gap is None:
            why = "no gap recorded"
        else:
            why = "gap too wide" if item.is_runner_up else "not the runner-up"
        tokens = [
            Cell("end" if token is None else str(token)) for token in (item.baseline_token, item.arm_token)
        ]
        places = [Cell(str(place), place) for place in (item.prompt_index, item.repeat, item.position)]
        texts = [Cell(item.baseline_text), Cell(item.arm_text)]
        reason = Cell(why, why, "good" if item.explained else "bad")
        cells = [*_named(result), *places, *tokens, _number(item.gap, "{:.4f}"), reason, *texts]
        grid.rows.append(Row(cells, "" if item.explained else "changed"))
    return grid


def why(analysis: Analysis, best: ArmResult | None) -> Grid:
    columns = ("Arm=", "Batch", "Tokens / step", "Step cost", "Predicted", "Measured", "Draft efficiency")
    grid = Grid(_columns(*columns, "Off first path", "Overhead"))
    for result in _ordered(analysis):
        speculation = result.arm.metrics.speculation
        if speculation is None:
            continue
        note, tone = ("outside", "warn") if result.prediction_off else ("", "")
        cells = [
            *_named(result),
            _number(tokens_per_step(result.arm.metrics)),
            _number(result.step_ratio, "{:.2f}×"),
            _number(result.predicted, "{:.2f}×", note, tone),
            _ratio(result.speedup),
            _share(speculation.draft_efficiency),
            _number(speculation.off_chain_accepted_tokens, "{:,d}"),
            _share(result.step.overhead_share if result.step else None),
        ]
        grid.rows.append(Row(cells, _mark(result, best)))
    return grid


def trust(analysis: Analysis) -> Grid:
    """What moved besides the arm: the bandwidth, the passes; and how much of the hardware is used."""
    grid = Grid(
        _columns("Arm=", "Batch", "Effect", "Drift", "Floor ms / token", "Floor / measured", "Roofline share")
    )
    for result in _ordered(analysis):
        drift = analysis.baseline_spread.get(result.name.max_num_seqs) if result.is_baseline else result.drift
        cells = [
            *_named(result),
            _share(result.speedup.effect if result.speedup and result.speedup.value else None),
            Cell("–") if drift is None else Cell(percent(drift, 1), drift, "warn" if result.drifted else ""),
            _number(result.floor_ms),
            _share(result.floor_share),
            _share(result.arm.metrics.roofline_share),
        ]
        grid.rows.append(Row(cells))
    return grid
