"""One arm with everything that was found about it, and what may be claimed from that."""

from __future__ import annotations

from dataclasses import dataclass

from stages.reporting.costs import StepCost
from stages.reporting.drift import Drift
from stages.reporting.load import Arm, ArmName
from stages.reporting.lossless import Losslessness
from stages.reporting.predicted import Predicted
from stages.reporting.statistics import Ratio


@dataclass(frozen=True)
class ArmResult:
    """One arm measured against the baseline of its batch size; ratios are None where that one failed."""

    arm: Arm
    speedup: Ratio | None
    latency: Ratio | None
    throughput: float | None
    losslessness: Losslessness | None
    accuracy: Ratio
    drift: Drift | None
    step: StepCost | None
    step_ratio: float | None
    explained: float | None  # the speedup that its own step times and acceptance explain
    floor_ms: float | None
    interleaved: Ratio | None = None
    predicted: Predicted | None = None
    changed_elsewhere: bool = False  # not lossless at another temperature

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
    def may_win(self) -> bool:
        """Its output is nowhere proven changed."""
        return self.lossless is not False and not self.changed_elsewhere

    @property
    def drifted(self) -> bool:
        """The machine moved by as much as the arm differs from the baseline."""
        drift = self.drift.value if self.drift else None
        return self.speedup is not None and drift is not None and drift >= self.speedup.effect

    @property
    def by_interleaving(self) -> bool:
        """Drift swallows the effect between engines, but one engine's interval stands."""
        return self.drifted and self.interleaved is not None and self.interleaved.has_interval

    @property
    def evidence(self) -> Ratio | None:
        """The speedup that a claim about this arm may rest on."""
        return self.interleaved if self.by_interleaving else self.speedup

    @property
    def surely_faster(self) -> bool:
        """May be recommended: output not proven changed, the whole interval above 1, beyond drift."""
        low = self.evidence.low if self.evidence else None
        beyond_drift = self.by_interleaving or not self.drifted
        return self.may_win and low is not None and low > 1 and beyond_drift

    @property
    def control_speedup(self) -> float | None:
        """Time per token of the arm's own undrafted pass / of the arm."""
        metrics = self.arm.metrics
        control = metrics.control.time_per_token_ms if metrics.control else None
        return control / metrics.time_per_token_ms if control and metrics.time_per_token_ms else None

    @property
    def floor_share(self) -> float | None:
        """Floor of plain decoding / measured time per token: speculation may exceed 1."""
        measured = self.arm.metrics.time_per_token_ms
        return self.floor_ms / measured if self.floor_ms and measured else None


def best_of(results: list[ArmResult]) -> ArmResult | None:
    """A sure one before others, then the highest lower bound; without intervals, the highest estimate."""
    candidates = [result for result in results if result.may_win and result.speedup]
    return max(candidates, key=_rank, default=None)


def _rank(result: ArmResult) -> tuple[bool, float, float]:
    evidence = result.evidence
    low = evidence.low if evidence.low is not None else float("-inf")
    return (result.surely_faster, low, evidence.value or 0.0)
