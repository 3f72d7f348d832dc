"""Every arm against its baseline, and which one the evidence speaks for.

    analysis = analyse(load_run(params, results), results)
    analysis.results["chain-k3-b1"].speedup
    analysis.others[0].temperature            # the same at the other temperatures

The winner is the arm with the highest lower bound of its speedup among those whose output is unchanged. It is
named only if that bound exceeds 1. Bounds allow for how far engines of this run disagree about the same
work (stages.reporting.drift); where that swallows the effect, the interleaved measurement decides, if there
is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from stages.reporting import costs
from stages.reporting.arm_result import ArmResult, best_of
from stages.reporting.drift import Drift, drift_of, widened
from stages.reporting.interleaved import Interleaved, compare_interleaved
from stages.reporting.load import Arm, ArmName, Run
from stages.reporting.lossless import Losslessness, compare_greedy, compare_sampled
from stages.reporting.peers import Peer, compare_peer
from stages.reporting.predicted import compare_predictions
from stages.reporting.statistics import Bootstrap, Ratio, per_prompt, ratio_of, split_repeats, wilson


@dataclass(frozen=True)
class Analysis:
    run: Run
    results: dict[str, ArmResult]
    aa_checks: dict[int, Ratio]  # by max_num_seqs
    bootstrap: Bootstrap
    machine: costs.Machine
    drift: Drift | None
    others: tuple[Analysis, ...] = ()
    interleaved: dict[int, Interleaved] = field(default_factory=dict)  # by max_num_seqs
    peer: Peer | None = None

    @cached_property
    def speculative(self) -> list[ArmResult]:
        return [result for result in self.results.values() if not result.is_baseline]

    @cached_property
    def compared(self) -> list[ArmResult]:
        return [result for result in self.speculative if result.speedup and result.speedup.value is not None]

    @property
    def every(self) -> tuple[Analysis, ...]:
        """This temperature, then the others."""
        return (self, *self.others)

    @property
    def temperature(self) -> float:
        return self.run.temperature

    @property
    def changed(self) -> list[ArmResult]:
        """The arms whose output is not the baseline's, at any temperature."""
        return [result for one in self.every for result in one.results.values() if result.lossless is False]

    @property
    def batches(self) -> list[int]:
        return sorted(self.run.params.engine.max_num_seqs)

    @property
    def sampled(self) -> bool:
        return self.temperature > 0

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
            if result is best or not result.may_win or result.name.max_num_seqs != best.name.max_num_seqs:
                continue
            ratio = ratio_of(per_prompt(result.arm.requests, per_token=True), ours, self.bootstrap)
            if widened(self.drift, ratio).contains(1.0):
                near.append(result)
        return near


@dataclass(frozen=True)
class Common:
    """What every arm at every temperature is judged by."""

    bootstrap: Bootstrap
    drift: Drift | None
    machine: costs.Machine
    num_tests: int


def analyse(run: Run, results: Path, predictions: Mapping[str, Ratio] | None = None) -> Analysis:
    """Compare every arm of `run`; deterministic for one report.seed.

    `predictions`: predicted time per token in ms by arm name. Raises UserError where the interleaved or the
    peer's results are asked for and missing or partial; `results` is their folder.
    """
    report, params = run.params.report, run.params
    bootstrap = Bootstrap(report.confidence, report.bootstrap_resamples, report.seed)
    num_tests = sum(bool(name.setting) for name in _names(run)) * sum(
        degree > 0 for degree in params.sampling.temperature
    )
    common = Common(bootstrap, drift_of(run, bootstrap), costs.Machine.of(run), num_tests)
    drift = common.drift
    main, *others = (_analyse(one, common) for one in (run, *run.others))
    baselines = {
        result.name.max_num_seqs: result.arm for result in main.results.values() if result.is_baseline
    }
    sides = compare_interleaved(params, results, baselines, bootstrap, drift)
    modes = {name: mode.speedup for side in sides.values() for name, mode in side.modes.items()}
    predicted = {
        name: replace(one, measured=widened(drift, one.measured))
        for name, one in compare_predictions(run, predictions or {}, bootstrap).items()
    }
    changed = {result.name.name for one in others for result in one.changed}
    compared = {
        name: replace(
            result,
            interleaved=modes.get(name),
            predicted=predicted.get(name),
            changed_elsewhere=name in changed,
        )
        for name, result in main.results.items()
    }
    main = replace(main, results=compared, others=tuple(others), interleaved=sides)
    best = main.best_at(1)
    return replace(main, peer=compare_peer(params, results, best.arm if best else None, bootstrap, drift))


def _names(run: Run) -> list[ArmName]:
    return [arm.name for arm in run.arms.values()]


def _analyse(run: Run, common: Common) -> Analysis:
    baselines = [arm for arm in run.arms.values() if not arm.name.setting]
    checks = {arm.name.max_num_seqs: split_repeats(arm.requests, common.bootstrap) for arm in baselines}
    return Analysis(
        run=run,
        results={name: _result(run, arm, common) for name, arm in run.arms.items()},
        aa_checks={batch: ratio for batch, ratio in checks.items() if ratio},
        bootstrap=common.bootstrap,
        drift=common.drift,
        machine=common.machine,
    )


def _result(run: Run, arm: Arm, common: Common) -> ArmResult:
    baseline, bootstrap, drift = run.baseline_of(arm), common.bootstrap, common.drift
    reference = None if arm is baseline else baseline
    first = arm.requests[arm.requests["repeat"] == 0]  # one answer a prompt: repeats are not new evidence
    over_prompts = _ratio(reference, arm, bootstrap, per_token=True)
    return ArmResult(
        arm=arm,
        speedup=widened(drift, over_prompts),
        over_prompts=over_prompts,
        latency=widened(drift, _ratio(reference, arm, bootstrap, per_token=False)),
        throughput=_throughput_ratio(reference, arm),
        losslessness=_losslessness(run, baseline, arm, bootstrap.seed, common.num_tests),
        accuracy=wilson(int(first["correct"].eq(True).sum()), len(first), bootstrap.confidence),
        undrafted=drift.of(arm.name.name) if drift else None,
        over_control=_over_control(arm, bootstrap),
        step=costs.step_cost(arm.metrics),
        step_ratio=costs.relative_step_cost(reference.metrics, arm.metrics) if reference else None,
        explained=costs.explained_speedup(reference.metrics, arm.metrics) if reference else None,
        floor=costs.floor_of(run, arm, common.machine),
        roofline_share=costs.roofline_share(arm, common.machine),
    )


def _ratio(baseline: Arm | None, arm: Arm, bootstrap: Bootstrap, per_token: bool) -> Ratio | None:
    if baseline is None:
        return None
    return ratio_of(per_prompt(baseline.requests, per_token), per_prompt(arm.requests, per_token), bootstrap)


def _over_control(arm: Arm, bootstrap: Bootstrap) -> Ratio | None:
    if arm.control is None:
        return None
    return ratio_of(per_prompt(arm.control, True), per_prompt(arm.requests, True), bootstrap)


def _losslessness(run: Run, baseline: Arm | None, arm: Arm, seed: int, num_tests: int) -> Losslessness | None:
    if baseline is None:
        return None
    if run.temperature > 0:
        same = arm is baseline
        return None if same else compare_sampled(baseline.requests, arm.requests, seed, num_tests)
    return compare_greedy(baseline.requests, arm.requests, arm.metrics.dtype)


def _throughput_ratio(baseline: Arm | None, arm: Arm) -> float | None:
    """Tokens a second over all passes, arm / baseline."""
    rates = [_rate(each) for each in (arm, baseline) if each]
    return rates[0] / rates[1] if len(rates) == 2 and all(rates) else None


def _rate(arm: Arm) -> float | None:
    seconds = sum(one.wall_time_s for one in arm.metrics.passes)
    return sum(one.num_output_tokens for one in arm.metrics.passes) / seconds if seconds else None
