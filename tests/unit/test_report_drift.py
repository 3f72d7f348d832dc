"""On a machine that drifts, an interval must hold the true speedup as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drifting_machine import MACHINES, TRUTH, simulate

from stages.reporting.drift import drift_of, widened
from stages.reporting.load import Run
from stages.reporting.statistics import Bootstrap, Ratio, per_prompt, ratio_of, split_repeats

BOOTSTRAP = Bootstrap(confidence=0.95, resamples=200, seed=0)


def intervals(run: Run) -> list[tuple[Ratio, Ratio, Ratio]]:
    """Of each drafted arm: over prompts alone, over its own control, as the report states it."""
    drift, found = drift_of(run, BOOTSTRAP), []
    for arm in run.arms.values():
        if arm.control is None:
            continue
        plain, control, ours = (
            per_prompt(rows, per_token=True)
            for rows in (run.baseline_of(arm).requests, arm.control, arm.requests)
        )
        over_prompts = ratio_of(plain, ours, BOOTSTRAP)
        found.append((over_prompts, ratio_of(control, ours, BOOTSTRAP), widened(drift, over_prompts)))
    return found


def coverage(machine: str, runs: int, **shape) -> np.ndarray:
    """Share of intervals that hold the truth, of the three kinds."""
    rng = np.random.default_rng(1)
    found = [one for _ in range(runs) for one in intervals(simulate(machine, rng, **shape))]
    return np.mean([[ratio.contains(TRUTH) for ratio in kinds] for kinds in found], axis=0)


def test_stated_intervals_hold_the_truth_on_every_machine_where_others_do_not():
    """Near their nominal 95%, each on 12 runs of 4 arms at 2 batch sizes; the rest fails somewhere badly."""
    found = {machine: coverage(machine, runs=12) for machine in MACHINES}
    over_prompts, over_control, stated = np.array(list(found.values())).T
    assert stated.min() > 0.9, found
    assert 0.93 < stated.mean() < 1.0, found
    assert over_prompts.mean() < 0.7, found
    assert over_control.min() < 0.8, found


def test_with_one_arm_they_hold_it_as_well():
    found = [coverage(machine, runs=40, num_arms=1, batches=(1,))[2] for machine in ("walk", "bursts")]
    assert min(found) > 0.9


def test_intervals_tell_no_more_of_a_difference_than_two_engines_of_one_setting_do():
    """All arms of the simulation are one setting; the drift between them must not look like a winner."""
    rng, false_alarms = np.random.default_rng(2), []
    for _ in range(12):
        run = simulate("swings", rng)
        drift = drift_of(run, BOOTSTRAP)
        first, second = (per_prompt(run.arms[f"chain-k{k}-b4"].requests, True) for k in (1, 2))
        false_alarms.append(not drift.widen(ratio_of(first, second, BOOTSTRAP)).contains(1.0))
    assert sum(false_alarms) <= 2


def test_the_baseline_against_itself_contains_one_on_every_machine():
    """The A/A check with the interval that speedups have: even repeats against odd ones."""
    rng, hits = np.random.default_rng(3), []
    for machine in MACHINES:
        for _ in range(8):
            run = simulate(machine, rng)
            drift = drift_of(run, BOOTSTRAP)
            for batch in (1, 4):
                ratio = split_repeats(run.arms[f"baseline-b{batch}"].requests, BOOTSTRAP)
                hits.append(drift.widen(ratio).contains(1.0))
    assert 0.93 < np.mean(hits) <= 1.0


def test_the_spread_between_engines_is_pooled_within_batch_sizes():
    run = simulate("quiet", np.random.default_rng(0), num_arms=1)
    run.again.clear()
    for batch, factor in ((1, 1.2), (4, 1.0)):
        arm, baseline = run.arms[f"chain-k1-b{batch}"], run.arms[f"baseline-b{batch}"]
        first = baseline.requests[baseline.requests["repeat"] == 0]
        baseline.requests.drop(baseline.requests.index[baseline.requests["repeat"] > 0], inplace=True)
        arm.control["e2e_ms"] = first["e2e_ms"].to_numpy() * factor
    drift = drift_of(run, BOOTSTRAP)
    assert drift.freedom == 2
    assert drift.sd == pytest.approx(math.sqrt(math.log(1.2) ** 2 / 2 / 2))
    assert [one.ratio.value for one in drift.at(1)] == pytest.approx([1.2])
    assert drift.half_width == pytest.approx(4.3027 * math.sqrt(2) * drift.sd, rel=1e-4)


def test_engines_that_agree_add_nothing_and_one_prompt_stays_without_interval():
    run = simulate("quiet", np.random.default_rng(0))
    drift = drift_of(run, BOOTSTRAP)
    assert drift.widen(Ratio(1.5, None, None, 1)) == Ratio(1.5, None, None, 1)
    assert drift.widen(None) is None
    ratio = Ratio(1.5, 1.4, 1.6, 8)
    assert drift.widen(ratio).low < 1.4 < 1.6 < drift.widen(ratio).high
    for arm in run.arms.values():
        if arm.control is not None:
            arm.control["e2e_ms"] = per_prompt(run.baseline_of(arm).requests, True).to_numpy() * 10
    run.again.clear()
    still = drift_of(run, BOOTSTRAP)
    assert still.widen(ratio) == ratio


def test_without_a_second_engine_nothing_is_known_of_drift():
    run = simulate("walk", np.random.default_rng(0), num_arms=0)
    assert drift_of(run, BOOTSTRAP).freedom == 2  # the baselines' repetition alone
    run.again.clear()
    assert drift_of(run, BOOTSTRAP) is None
    assert widened(None, Ratio(1.5, 1.4, 1.6, 8)) == Ratio(1.5, 1.4, 1.6, 8)
