"""One arm with everything that was found about it, and what may be claimed from that."""

from __future__ import annotations

from dataclasses import dataclass

from stages.reporting.costs import Floor, StepCost
from stages.reporting.drift import Undrafted
from stages.reporting.load import Arm, ArmName
from stages.reporting.lossless import Losslessness
from stages.reporting.predicted import Predicted
from stages.reporting.statistics import Ratio


@dataclass(frozen=True)
class ArmResult:
    """One arm measured against the baseline of its batch size; ratios are None where that one failed.

    The intervals of speedup and latency are over prompts and engines, that of over_prompts leaves out how
    far two engines of this run disagree about the same work.
    """

    arm: Arm
    speedup: Ratio | None
    over_prompts: Ratio | None
    latency: Ratio | None
    throughput: float | None
    losslessness: Losslessness | None
    accuracy: Ratio
    undrafted: Undrafted | None  # the baseline's work in this arm's engine, or in the baseline's second
    over_control: Ratio | None  # over the arm's own undrafted pass instead of the stock baseline
    step: StepCost | None
    step_ratio: float | None
    explained: float | None  # the speedup that its own step times and acceptance explain
    floor: Floor
    roofline_share: float | None
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
        """Over prompts alone it is faster; engines that disagree about the same work leave it open."""
        over = self.over_prompts.low if self.over_prompts else None
        return over is not None and over > 1 >= self.speedup.low

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
        """May be recommended: output not proven changed, the whole interval above 1, drift allowed for."""
        low = self.evidence.low if self.evidence else None
        return self.may_win and low is not None and low > 1

    @property
    def surely_slower(self) -> bool:
        """The whole interval lies below 1."""
        high = self.evidence.high if self.evidence else None
        return high is not None and high < 1

    @property
    def floor_share(self) -> float | None:
        """Floor of plain decoding / measured time per token: speculation may exceed 1."""
        measured = self.arm.metrics.time_per_token_ms
        return self.floor.ms / measured if self.floor.ms and measured else None


def best_of(results: list[ArmResult]) -> ArmResult | None:
    """A sure one before others, then the highest lower bound; without intervals, the highest estimate."""
    candidates = [result for result in results if result.may_win and result.speedup]
    return max(candidates, key=_rank, default=None)


def _rank(result: ArmResult) -> tuple[bool, float, float]:
    evidence = result.evidence
    low = evidence.low if evidence.low is not None else float("-inf")
    return (result.surely_faster, low, evidence.value or 0.0)
