"""How far the machine itself moved while an arm and its baseline were measured in engines of their own.

drift = drift_of(baseline, arm)
drift.value         # the largest of what is known; 0.05 is 5%
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.reporting.load import Arm
from stages.reporting.statistics import spread


@dataclass(frozen=True)
class Drift:
    """Largest / smallest - 1 of one quantity each; None where it was not measured twice.

    probe     memory bandwidth before and after the arm and its baseline
    passes    time per token of the passes of either
    control   time per token of the baseline and of the arm's own undrafted pass, run last
    """

    probe: float | None
    passes: float | None
    control: float | None

    @property
    def value(self) -> float | None:
        known = [value for value in (self.probe, self.passes, self.control) if value is not None]
        return max(known, default=None)


def drift_of(baseline: Arm, arm: Arm) -> Drift:
    probes = [
        probe.memory_bandwidth_gb_per_s
        for each in (baseline, arm)
        if each.metrics.probe
        for probe in (each.metrics.probe.before, each.metrics.probe.after)
        if probe
    ]
    passes = [value for each in (baseline, arm) if (value := pass_spread(each)) is not None]
    control = arm.metrics.control.time_per_token_ms if arm.metrics.control else None
    return Drift(
        probe=spread(probes),
        passes=max(passes, default=None),
        control=spread([baseline.metrics.time_per_token_ms, control]),
    )


def pass_spread(arm: Arm) -> float | None:
    """How far the passes of one arm lie apart in time per token."""
    passes = [one for one in arm.metrics.passes if one.num_output_tokens]
    return spread([one.wall_time_s / one.num_output_tokens for one in passes])
