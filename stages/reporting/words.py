"""Numbers and arms as a reader sees them: 1.82×, 40 %, 21.2 ms, 'chain k=3 at batch 1'."""

from __future__ import annotations

from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult
from stages.reporting.drift import Drift
from stages.reporting.statistics import Ratio

NEAR_TIES = {"identical": "identical", "near_ties": "near-ties", "not_lossless": "NOT LOSSLESS"}
WORDS = NEAR_TIES | {"not_tested": "not tested", "same_distribution": "same distribution"}


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(ratio: Ratio | None) -> str:
    """'1.55 to 1.70', or why there is none."""
    if ratio is None or ratio.value is None:
        return "not measured"
    return f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.has_interval else "no interval from one prompt"


def setting(result: ArmResult) -> str:
    return f"{result.name.label} at batch {result.name.max_num_seqs}"


def apart(drift: Drift) -> str:
    """How far the engines' times for the same work, the baselines' own among them, spread within a batch."""
    spreads = []
    for batch in {one.max_num_seqs for one in drift.engines}:
        ratios = [1.0] + [one.ratio.value for one in drift.at(batch)]
        spreads.append(max(ratios) / min(ratios) - 1)
    return f"up to {percent(max(spreads))}"


def lossless_words(result: ArmResult) -> str:
    """'identical', 'near-ties (2 of 24)', 'NOT LOSSLESS (1 of 24)' ..."""
    found = result.losslessness
    if found is None:
        return "–"
    counts = {"near_ties": len(found.divergences), "not_lossless": len(found.divergences)}.get(found.verdict)
    return f"{WORDS[found.verdict]} ({counts} of {found.num_compared})" if counts else WORDS[found.verdict]


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def at_temperature(analysis: Analysis, result: ArmResult) -> str:
    """The setting, with its temperature where several were measured."""
    degree = f", temperature {result.arm.metrics.temperature:g}" if analysis.others else ""
    return setting(result) + degree
