"""How far two engines of one run disagree about the same work, and intervals that allow for it.

    drift = drift_of(run, bootstrap)
    drift.widen(ratio)          # the interval over prompts, made one over prompts and engines

Baseline and arm run in engines of their own, minutes apart, on a machine that others use too. A time is

    log t(engine, prompt) = log work(prompt) + m(engine),      m: standard deviation sd, alike for all engines

and an interval over prompts, paired, knows nothing of m: both of its sides have one m each, drawn once. But
the run repeats one piece of work, the undrafted one, in every engine: in each arm's control pass, and in the
baseline once more at the end. Their ratios to the baseline, paired by prompt, give sd of m within each batch
size, pooled over batch sizes (`freedom` = engines - batch sizes). The error m(baseline) - m(arm) then has the
half-width

    h = t(freedom) * sqrt(2) * sd       of log speedup

and stands beside that over prompts, of which it is independent: confidence limits of a sum of two such
estimates are their half-widths' root of squares, each side for itself (Zou and Donner 2008, "Construction of
confidence intervals about effect measures", Statistics in Medicine 27: 1693, there called MOVER).

The arm's own control is not taken for the baseline: what moves within an engine's minutes does not cancel,
and an undrafted pass of the plugin's engine is not stock vLLM. Simulated by tests/unit/test_report_drift.py
with 4 arms at 2 batch sizes, the share of nominal 95% intervals that hold the true speedup:

    machine                      over prompts   over the own control   as stated here
    quiet, engines differ 3%         81%               92%                 98%
    random walk, 4% a pass           37%               80%                 98%
    steady trend of 25%              29%               92%                 99%
    one jump of 20%                  50%               90%                 97%
    swings of 8%, correlated         50%               69%                 98%
    30% slower, a fifth of passes    45%               47%                 97%

Two or three engines say little of how engines differ, so with one arm the interval is wide, and holds more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from stages.reporting.load import Arm, Run
from stages.reporting.statistics import Bootstrap, Ratio, per_prompt, ratio_of, spread

MOST = math.log(1000)  # of log speedup: beyond it an interval says nothing, and no axis holds it


@dataclass(frozen=True)
class Undrafted:
    """The baseline's work once more: time of the engine called `name` / of the baseline, by prompt."""

    name: str
    max_num_seqs: int
    ratio: Ratio


@dataclass(frozen=True)
class Drift:
    """`sd` of log time between engines that do the same work, with its degrees of freedom."""

    sd: float
    freedom: int
    confidence: float
    engines: tuple[Undrafted, ...]

    @property
    def half_width(self) -> float:
        """Of log speedup: how far two engines may lie apart by drift alone."""
        quantile = float(stats.t.ppf((1 + self.confidence) / 2, self.freedom))
        return quantile * math.sqrt(2) * self.sd

    @property
    def factor(self) -> float:
        return math.exp(min(self.half_width, MOST))

    def widen(self, ratio: Ratio | None) -> Ratio | None:
        """`ratio` of two engines' times with its interval over prompts, made one over engines as well."""
        if ratio is None or not ratio.has_interval:
            return ratio
        below = min(math.hypot(math.log(ratio.value / ratio.low), self.half_width), MOST)
        above = min(math.hypot(math.log(ratio.high / ratio.value), self.half_width), MOST)
        return replace(ratio, low=ratio.value * math.exp(-below), high=ratio.value * math.exp(above))

    def of(self, name: str) -> Undrafted | None:
        return next((one for one in self.engines if one.name == name), None)

    def at(self, batch: int) -> tuple[Undrafted, ...]:
        return tuple(one for one in self.engines if one.max_num_seqs == batch)


def drift_of(run: Run, bootstrap: Bootstrap) -> Drift | None:
    """None where no baseline's work was done in a second engine."""
    engines = tuple(_undrafted(run, bootstrap))
    freedom = len(engines)  # every batch size has its baseline beside these, and spends one degree
    if not freedom:
        return None
    squares = 0.0
    for batch in {one.max_num_seqs for one in engines}:
        logs = [0.0] + [math.log(one.ratio.value) for one in engines if one.max_num_seqs == batch]
        squares += float(np.var(logs)) * len(logs)
    return Drift(math.sqrt(squares / freedom), freedom, bootstrap.confidence, engines)


def widened(drift: Drift | None, ratio: Ratio | None) -> Ratio | None:
    """As far as anything is known of drift."""
    return drift.widen(ratio) if drift else ratio


def _undrafted(run: Run, bootstrap: Bootstrap) -> Iterator[Undrafted]:
    for name, arm in run.arms.items():
        baseline = run.baseline_of(arm)
        if baseline is None:
            continue
        plain = per_prompt(baseline.requests, per_token=True)
        again = run.again.get(arm.name.max_num_seqs) if arm is baseline else arm.control
        if again is None:
            continue
        ratio = ratio_of(per_prompt(again, per_token=True), plain, bootstrap)
        if ratio.value is not None:
            yield Undrafted(name, arm.name.max_num_seqs, ratio)


def probe_spread(arm: Arm) -> float | None:
    """How far the memory bandwidth probed before and after an arm lies apart: largest / smallest - 1."""
    probe = arm.metrics.probe
    return probe and spread([one.memory_bandwidth_gb_per_s for one in (probe.before, probe.after) if one])


def pass_spread(arm: Arm) -> float | None:
    """How far the passes of one arm lie apart in time per token."""
    passes = [one for one in arm.metrics.passes if one.num_output_tokens]
    return spread([one.wall_time_s / one.num_output_tokens for one in passes])
