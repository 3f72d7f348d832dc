"""Every arm against its baseline, and the one sentence that follows.

    analysis = analyse(run)
    analysis.verdict.sentence      # "Use chain k=3: 1.62x as fast ..."
    analysis.results["chain-k3-b1"].speedup

The winner is the arm with the highest lower bound of its speedup among those whose output is unchanged.
It is named only if that bound exceeds 1 and the effect exceeds the machine's own drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from stages.reporting import costs
from stages.reporting.load import Arm, ArmName, Run
from stages.reporting.lossless import Losslessness, compare_greedy, compare_sampled
from stages.reporting.statistics import (
    Bootstrap,
    Ratio,
    per_prompt,
    ratio_of,
    split_repeats,
    spread,
    wilson,
)


@dataclass(frozen=True)
class ArmResult:
    """One arm measured against the baseline of its batch size; ratios are None where that one failed."""

    arm: Arm
    speedup: Ratio | None
    latency: Ratio | None
    throughput: float | None
    losslessness: Losslessness | None
    accuracy: Ratio
    drift: float | None
    predicted: float | None
    step: costs.StepCost | None
    step_ratio: float | None
    floor_ms: float | None

    @property
    def name(self) -> ArmName:
        return self.arm.name

    @property
    def is_baseline(self) -> bool:
        return self.name.arm == "baseline"

    @property
    def lossless(self) -> bool | None:
        return self.losslessness.lossless if self.losslessness else None

    @property
    def drifted(self) -> bool:
        """The machine moved by as much as the arm differs from the baseline."""
        return self.speedup is not None and self.drift is not None and self.drift >= self.speedup.effect

    @property
    def surely_faster(self) -> bool:
        """May be recommended: output not proven changed, the whole interval above 1, beyond drift."""
        low = self.speedup.low if self.speedup else None
        return self.lossless is not False and low is not None and low > 1 and not self.drifted

    @property
    def floor_share(self) -> float | None:
        """Floor of plain decoding / measured time per token: speculation may exceed 1."""
        measured = self.arm.metrics.time_per_token_ms
        return self.floor_ms / measured if self.floor_ms and measured else None

    @property
    def prediction_off(self) -> bool:
        """The prediction lies outside the measured interval."""
        if self.predicted is None or self.speedup is None or not self.speedup.has_interval:
            return False
        return not self.speedup.contains(self.predicted)


@dataclass(frozen=True)
class Analysis:
    run: Run
    results: dict[str, ArmResult]
    aa_checks: dict[int, Ratio]  # by max_num_seqs
    baseline_spread: dict[int, float | None]
    bootstrap: Bootstrap

    @cached_property
    def speculative(self) -> list[ArmResult]:
        return [result for result in self.results.values() if not result.is_baseline]

    @cached_property
    def compared(self) -> list[ArmResult]:
        return [result for result in self.speculative if result.speedup and result.speedup.value is not None]

    @property
    def changed(self) -> list[ArmResult]:
        """The arms whose output is not the baseline's."""
        return [result for result in self.results.values() if result.lossless is False]

    @property
    def batches(self) -> list[int]:
        return sorted(self.run.params.engine.max_num_seqs)

    @property
    def sampled(self) -> bool:
        return self.run.params.sampling.temperature > 0

    def baseline(self, batch: int) -> ArmResult | None:
        return self.results.get(ArmName("baseline", "", batch).name)

    def best_at(self, batch: int) -> ArmResult | None:
        """The arm of the highest lower bound (else estimate) at one batch size, unchanged output only."""
        return best_of([result for result in self.compared if result.name.max_num_seqs == batch])

    def rivals(self, best: ArmResult) -> list[ArmResult]:
        """Arms of the best one's batch whose time per token cannot be told from its own."""
        ours = per_prompt(best.arm.requests, per_token=True)
        near = []
        for result in self.compared:
            if (
                result is best
                or result.lossless is False
                or result.name.max_num_seqs != best.name.max_num_seqs
            ):
                continue
            ratio = ratio_of(per_prompt(result.arm.requests, per_token=True), ours, self.bootstrap)
            if ratio.contains(1.0):
                near.append(result)
        return near


def best_of(results: list[ArmResult]) -> ArmResult | None:
    """The highest lower bound; where no arm has an interval, the highest estimate."""
    candidates = [result for result in results if result.lossless is not False and result.speedup]
    return max(candidates, key=lambda result: _rank(result.speedup), default=None)


def _rank(speedup: Ratio) -> tuple[float, float]:
    return (speedup.low if speedup.low is not None else float("-inf"), speedup.value or 0.0)


def analyse(run: Run) -> Analysis:
    """Compare every arm of `run`; deterministic for one report.seed."""
    report = run.params.report
    bootstrap = Bootstrap(report.confidence, report.bootstrap_resamples, report.seed)
    baselines = {batch: run.arms.get(ArmName("baseline", "", batch).name) for batch in _batches(run)}
    checks = {batch: split_repeats(arm.requests, bootstrap) for batch, arm in baselines.items() if arm}
    return Analysis(
        run=run,
        results={name: _result(run, arm, bootstrap) for name, arm in run.arms.items()},
        aa_checks={batch: ratio for batch, ratio in checks.items() if ratio},
        baseline_spread={batch: _pass_spread(arm) for batch, arm in baselines.items() if arm},
        bootstrap=bootstrap,
    )


def _batches(run: Run) -> tuple[int, ...]:
    return run.params.engine.max_num_seqs


def _result(run: Run, arm: Arm, bootstrap: Bootstrap) -> ArmResult:
    baseline = run.baseline_of(arm)
    reference = None if arm is baseline else baseline
    first = arm.requests[arm.requests["repeat"] == 0]  # one answer a prompt: repeats are not new evidence
    return ArmResult(
        arm=arm,
        speedup=_ratio(reference, arm, bootstrap, per_token=True),
        latency=_ratio(reference, arm, bootstrap, per_token=False),
        throughput=_throughput_ratio(reference, arm),
        losslessness=_losslessness(run, baseline, arm),
        accuracy=wilson(int(first["correct"].eq(True).sum()), len(first), bootstrap.confidence),
        drift=_drift(reference, arm) if reference else None,
        predicted=costs.predicted_speedup(reference.metrics, arm.metrics) if reference else None,
        step=costs.step_cost(arm.metrics),
        step_ratio=costs.relative_step_cost(reference.metrics, arm.metrics) if reference else None,
        floor_ms=costs.floor_ms(run, arm),
    )


def _ratio(baseline: Arm | None, arm: Arm, bootstrap: Bootstrap, per_token: bool) -> Ratio | None:
    if baseline is None:
        return None
    return ratio_of(per_prompt(baseline.requests, per_token), per_prompt(arm.requests, per_token), bootstrap)


def _losslessness(run: Run, baseline: Arm | None, arm: Arm) -> Losslessness | None:
    if baseline is None:
        return None
    if run.params.sampling.temperature > 0:
        return None if arm is baseline else compare_sampled(baseline.requests, arm.requests)
    return compare_greedy(baseline.requests, arm.requests, arm.metrics.dtype)


def _throughput_ratio(baseline: Arm | None, arm: Arm) -> float | None:
    """Tokens a second over all passes, arm / baseline."""
    rates = [_rate(each) for each in (arm, baseline) if each]
    return rates[0] / rates[1] if len(rates) == 2 and all(rates) else None


def _rate(arm: Arm) -> float | None:
    seconds = sum(one.wall_time_s for one in arm.metrics.passes)
    return sum(one.num_output_tokens for one in arm.metrics.passes) / seconds if seconds else None


def _pass_spread(arm: Arm) -> float | None:
    passes = [one for one in arm.metrics.passes if one.num_output_tokens]
    return spread([one.wall_time_s / one.num_output_tokens for one in passes])


def _drift(baseline: Arm, arm: Arm) -> float | None:
    """The larger of: how far the bandwidth probes around both lie apart, how far the passes of either do."""
    probes = [
        probe.memory_bandwidth_gb_per_s
        for each in (baseline, arm)
        if each.metrics.probe
        for probe in (each.metrics.probe.before, each.metrics.probe.after)
        if probe
    ]
    known = [
        value for value in (spread(probes), _pass_spread(baseline), _pass_spread(arm)) if value is not None
    ]
    return max(known, default=None)
