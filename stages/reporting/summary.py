"""The numbers for machines: results/summary.json and the tidy results/plots/*.csv.

summary.json    arms.<arm>-<key>: speedup, speedup_low, speedup_high, ... ; best; recommendation
speedup.csv         arm by arm, with the interval and the prediction
acceptance.csv      acceptance rate by position in the draft
time_per_token.csv  time per token by drafted tokens and batch, with the floor
step_cost.csv       the parts of a step, in ms a step and a token

Every CSV names its rows by `name` (chain-k3-b1), `arm`, `setting` and `max_num_seqs`. No NaN: what does
not exist is null, or empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.files import atomic_path
from stages.reporting.analysis import Analysis, ArmResult
from stages.reporting.costs import PARTS
from stages.reporting.load import ArmName
from stages.reporting.verdict import Verdict

DIGITS = 6
NO_BEST = {"arm": None, "key": None, "speedup": None, "speedup_low": None, "speedup_high": None}


def summarise(analysis: Analysis, verdict: Verdict) -> dict[str, Any]:
    """The content of results/summary.json."""
    arms = {name: _arm(result) for name, result in analysis.results.items()}
    arms |= {name: {"failed": error} for name, error in analysis.run.failed.items()}
    best = verdict.best
    return {
        "recommendation": verdict.sentence,
        "decision": verdict.kind,
        "best": NO_BEST if best is None else {"arm": best.name.arm, "key": best.name.key, **_speedup(best)},
        "pays_up_to_max_num_seqs": max(verdict.pays_at, default=None),
        "all_lossless": not analysis.changed,
        "num_failed": len(analysis.run.failed),
        "arms": arms,
    }


def _speedup(result: ArmResult) -> dict[str, float | None]:
    if result.is_baseline:
        return {"speedup": 1.0, "speedup_low": None, "speedup_high": None}
    ratio = result.speedup
    low, high = (ratio.low, ratio.high) if ratio else (None, None)
    return {
        "speedup": rounded(ratio.value if ratio else None),
        "speedup_low": rounded(low),
        "speedup_high": rounded(high),
    }


def _arm(result: ArmResult) -> dict[str, Any]:
    speculation, found = result.arm.metrics.speculation, result.losslessness
    entry = {
        **_speedup(result),
        "time_per_token_ms": rounded(result.arm.metrics.time_per_token_ms),
        "latency_speedup": rounded(result.latency.value if result.latency else None),
        "throughput_speedup": rounded(result.throughput),
        "mean_acceptance_length": rounded(speculation.mean_acceptance_length if speculation else None),
        "draft_efficiency": rounded(speculation.draft_efficiency if speculation else None),
        "lossless": result.lossless,
        "verdict": found.verdict if found else None,
        "num_outputs": found.num_compared if found else None,
        "num_divergences": len(found.divergences) if found else None,
        "num_unexplained": found.num_unexplained if found else None,
        "gsm8k_accuracy": rounded(result.accuracy.value),
        "predicted_speedup": rounded(result.predicted),
        "overhead_share": rounded(result.step.overhead_share if result.step else None),
        "floor_share": rounded(result.floor_share),
        "roofline_share": rounded(result.arm.metrics.roofline_share),
        "drift": rounded(result.drift),
    }
    if result.is_baseline:  # these compare with a baseline or count drafts
        speculative_only = ("latency_speedup", "throughput_speedup", "mean_acceptance_length")
        for key in (*speculative_only, "draft_efficiency", "predicted_speedup", "drift"):
            del entry[key]
    return entry


def rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)


def tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The tidy tables by file stem; also what the figures draw."""
    results = list(analysis.results.values())
    return {
        "speedup": _frame([_speedup_row(result) for result in analysis.speculative], SPEEDUP_COLUMNS),
        "acceptance": _frame(
            [row for result in results for row in _acceptance_rows(result)], ACCEPTANCE_COLUMNS
        ),
        "time_per_token": _frame([_time_row(result) for result in results], TIME_COLUMNS),
        "step_cost": _frame([row for result in results for row in _step_rows(result)], STEP_COLUMNS),
    }


ID_COLUMNS = ["name", "arm", "setting", "label", "max_num_seqs"]
SPEEDUP_COLUMNS = [*ID_COLUMNS, "speedup", "low", "high", "predicted", "lossless"]
ACCEPTANCE_COLUMNS = [*ID_COLUMNS, "position", "acceptance_rate"]
TIME_COLUMNS = [*ID_COLUMNS, "drafted_tokens", "time_per_token_ms", "floor_ms"]
STEP_COLUMNS = [*ID_COLUMNS, "part", "ms_per_step", "ms_per_token"]


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)


def _identity(name: ArmName) -> dict[str, Any]:
    return {
        "name": name.name,
        "arm": name.arm,
        "setting": name.setting or "none",
        "label": name.label,
        "max_num_seqs": name.max_num_seqs,
    }


def _speedup_row(result: ArmResult) -> dict[str, Any]:
    bounds = _speedup(result)
    return _identity(result.name) | {
        "speedup": bounds["speedup"],
        "low": bounds["speedup_low"],
        "high": bounds["speedup_high"],
        "predicted": rounded(result.predicted),
        "lossless": result.lossless,
    }


def _acceptance_rows(result: ArmResult) -> list[dict[str, Any]]:
    speculation = result.arm.metrics.speculation
    rates = speculation.acceptance_rate_per_position if speculation else {}
    return [
        _identity(result.name) | {"position": position, "acceptance_rate": rounded(rate)}
        for position, rate in sorted(rates.items())
    ]


def _time_row(result: ArmResult) -> dict[str, Any]:
    metrics = result.arm.metrics
    speculation = metrics.speculation
    drafted = (speculation.tree_nodes or speculation.num_speculative_tokens) if speculation else 0
    return _identity(result.name) | {
        "drafted_tokens": drafted,
        "time_per_token_ms": rounded(metrics.time_per_token_ms),
        "floor_ms": rounded(result.floor_ms),
    }


def _step_rows(result: ArmResult) -> list[dict[str, Any]]:
    if result.step is None:
        return []
    step, token = result.step.per_step_ms, result.step.per_token_ms
    return [
        _identity(result.name)
        | {"part": part, "ms_per_step": rounded(step[part]), "ms_per_token": rounded(token[part])}
        for part in PARTS
    ]


def write_tables(folder: Path, frames: dict[str, pd.DataFrame]) -> None:
    for stem, frame in frames.items():
        with atomic_path(folder / f"{stem}.csv") as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
