"""The tidy tables results/plots/*.csv, which the pictures and DVC's plots draw.

speedup.csv         arm by arm and temperature, with the interval and the prediction
acceptance.csv      acceptance rate by position in the draft and temperature
time_per_token.csv  time per token by drafted tokens (k of a chain, nodes of a tree) and batch, with the floor
step_cost.csv       the parts of a step, in ms a step and a token

Every CSV names its rows by `name` (chain-k3-b1), `arm`, `setting` and `max_num_seqs`; a table without
`temperature` is of the first. What does not exist is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.files import atomic_path
from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult
from stages.reporting.costs import PARTS
from stages.reporting.load import ArmName
from stages.reporting.summary import rounded


def tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The tidy tables by file stem."""
    results = list(analysis.results.values())
    every = [result for one in analysis.every for result in one.results.values()]
    rates = [row for result in every for row in _acceptance_rows(result)]
    costs = [row for result in results for row in _step_rows(result)]
    return {
        "speedup": _frame([_speedup_row(one) for one in every if not one.is_baseline], SPEEDUP_COLUMNS),
        "acceptance": _frame(rates, ACCEPTANCE_COLUMNS),
        "time_per_token": _frame([_time_row(result) for result in results], TIME_COLUMNS),
        "step_cost": _frame(costs, STEP_COLUMNS),
    }


ID_COLUMNS = ["name", "arm", "setting", "label", "max_num_seqs"]
SPEEDUP_COLUMNS = [*ID_COLUMNS, "temperature", "speedup", "low", "high", "predicted", "lossless"]
ACCEPTANCE_COLUMNS = [*ID_COLUMNS, "temperature", "position", "acceptance_rate"]
TIME_COLUMNS = [*ID_COLUMNS, "drafted_tokens", "k", "nodes", "time_per_token_ms", "floor_ms"]
STEP_COLUMNS = [*ID_COLUMNS, "part", "ms_per_step", "ms_per_token"]
WHOLE = ("k", "nodes", "drafted_tokens")


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns).astype({name: "Int64" for name in columns if name in WHOLE})


def _identity(name: ArmName) -> dict[str, Any]:
    return {
        "name": name.name,
        "arm": name.arm,
        "setting": name.setting or "none",
        "label": name.label,
        "max_num_seqs": name.max_num_seqs,
    }


def _speedup_row(result: ArmResult) -> dict[str, Any]:
    ratio, predicted = result.speedup, result.predicted
    return _identity(result.name) | {
        "temperature": result.arm.metrics.temperature,
        "speedup": rounded(ratio.value if ratio else None),
        "low": rounded(ratio.low if ratio else None),
        "high": rounded(ratio.high if ratio else None),
        "predicted": rounded(predicted.speedup if predicted else None),
        "lossless": result.lossless,
    }


def _acceptance_rows(result: ArmResult) -> list[dict[str, Any]]:
    metrics = result.arm.metrics
    rates = metrics.speculation.acceptance_rate_per_position if metrics.speculation else {}
    own = _identity(result.name) | {"temperature": metrics.temperature}
    return [
        own | {"position": position, "acceptance_rate": rounded(rate)}
        for position, rate in sorted(rates.items())
    ]


def _time_row(result: ArmResult) -> dict[str, Any]:
    """The baseline drafts nothing: it is the point at 0 of both `k` and `nodes`."""
    metrics, arm = result.arm.metrics, result.name.arm
    speculation = metrics.speculation
    drafted = (speculation.tree_nodes or speculation.num_speculative_tokens) if speculation else 0
    return _identity(result.name) | {
        "drafted_tokens": drafted,
        "k": None if arm == "tree" else drafted,
        "nodes": None if arm == "chain" else drafted,
        "time_per_token_ms": rounded(metrics.time_per_token_ms),
        "floor_ms": rounded(result.floor.ms),
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
