"""The second way of measuring: one engine with the plugin, its mode switched from group to group of prompts.

    sides = compare_interleaved(params, results, baselines, bootstrap)
    sides[1].modes["chain-k3-b1"].speedup      # over the same engine's undrafted mode

Every group of prompts runs in every mode, one after another in random order, so what drifts with the machine
or the engine cancels. The undrafted mode is compared with the stock baseline of another engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from stages.common.errors import UserError
from stages.common.params import Params
from stages.reporting.drift import Drift, widened
from stages.reporting.load import (
    Arm,
    ArmName,
    expected_arms,
    failure_of,
    parse,
    read,
    read_requests,
)
from stages.reporting.schema import InterleavedMetrics
from stages.reporting.statistics import FEW_PROMPTS, Bootstrap, Ratio, paired_ratio, per_prompt, ratio_of

COLUMNS = ("prompt_index", "repeat", "group", "mode", "num_output_tokens", "e2e_ms", "group_wall_time_s")
NONE = "none"


@dataclass(frozen=True)
class Mode:
    """An arm as a mode of the one engine; its speedup is over the mode without drafts."""

    name: ArmName
    speedup: Ratio
    time_per_token_ms: float | None


@dataclass(frozen=True)
class Interleaved:
    """One batch size. `none_ratio`: time of the undrafted mode / of the stock baseline, by prompt.

    The baseline ran in another engine, so this interval allows for drift; those of the modes need not.
    """

    unit: str  # what the interval resamples
    none_ms: float | None
    none_ratio: Ratio | None
    modes: dict[str, Mode]


def compare_interleaved(
    params: Params,
    results: Path,
    baselines: Mapping[int, Arm],
    bootstrap: Bootstrap,
    drift: Drift | None,
) -> dict[int, Interleaved]:
    """By batch size; empty unless params asks for it. Raises UserError for missing or partial files."""
    if not params.measure.interleaved:
        return {}
    sides = {}
    for batch in params.engine.max_num_seqs:
        folder = results / "interleaved" / f"b{batch}"
        if failure_of(folder):
            continue
        metrics = parse(InterleavedMetrics, folder / "metrics.json", read(folder / "metrics.json"))
        if metrics.asked:
            requests = read_requests("interleaved", folder / "requests.parquet", COLUMNS)
            names = {
                f"{name.arm}-{name.setting}": name
                for name in expected_arms(params)
                if name.setting and name.max_num_seqs == batch
            }
            _check_whole(folder, metrics, requests, set(names))
            side = _compare(metrics, requests, names, baselines.get(batch), bootstrap)
            sides[batch] = replace(side, none_ratio=widened(drift, side.none_ratio))
    return sides


def _check_whole(folder: Path, metrics: InterleavedMetrics, requests: pd.DataFrame, arms: set[str]) -> None:
    expected = {NONE, *arms}
    absent = sorted(expected - (set(metrics.modes) & set(requests["mode"])))
    if absent:
        raise UserError(str(folder), f"no mode {', '.join(absent)}", "every mode of params; run `dvc repro`")
    counts = requests[requests["mode"].isin(expected)].groupby(["group", "repeat"])["mode"].nunique()
    if (counts != len(expected)).any():
        raise UserError(str(folder), "a group without all modes", "whole groups; run `dvc repro`")


def _compare(
    metrics: InterleavedMetrics,
    requests: pd.DataFrame,
    names: dict[str, ArmName],
    baseline: Arm | None,
    bootstrap: Bootstrap,
) -> Interleaved:
    runs = requests.groupby(["group", "repeat", "mode"])
    times = runs["group_wall_time_s"].first() / runs["num_output_tokens"].sum().where(lambda total: total > 0)
    table = times.unstack("mode").dropna()  # [group and repeat, mode], seconds a token
    by_group = table.groupby("group").mean()
    table, unit = (
        (by_group, "groups of prompts") if len(by_group) >= FEW_PROMPTS else (table, "groups and repeats")
    )
    plain = per_prompt(requests[requests["mode"] == NONE], per_token=True)
    return Interleaved(
        unit=unit,
        none_ms=metrics.modes[NONE].time_per_token_ms,
        none_ratio=ratio_of(plain, per_prompt(baseline.requests, per_token=True), bootstrap)
        if baseline
        else None,
        modes={
            name.name: Mode(
                name,
                paired_ratio(table[NONE].to_numpy(), table[mode].to_numpy(), bootstrap),
                metrics.modes[mode].time_per_token_ms,
            )
            for mode, name in names.items()
        },
    )
