"""Where the time goes, what the hardware allows, and what step times and acceptance explain.

A step is one round of the engine. Without speculation it gives each sequence one token; with it,
`mean_acceptance_length` tokens. So for every batch size

    speedup  ~  tokens per step / relative cost of a step
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.reporting.load import Arm, Run
from stages.reporting.schema import Metrics

PARTS = ("target_forward", "draft_forward", "verify", "compact", "other")
FORWARDS = ("target_forward", "draft_forward")


@dataclass(frozen=True)
class StepCost:
    """Means per engine step in ms; `per_token_ms` splits the measured time per token in the same shares."""

    per_step_ms: dict[str, float]
    per_token_ms: dict[str, float]
    total_ms: float
    overhead_share: float


def step_cost(metrics: Metrics) -> StepCost | None:
    """None where the arm recorded no step times (stock speculation offers no seam to time).

    `other` is what the forwards leave of a step; timed in another pass, it may fall below zero and is 0 then.
    """
    recorded = metrics.step_ms or {}
    parts = {part: max(float(recorded.get(part) or 0.0), 0.0) for part in PARTS}
    total = sum(parts.values())
    if total <= 0:
        return None
    scale = (metrics.time_per_token_ms or 0.0) / total
    return StepCost(
        per_step_ms=parts,
        per_token_ms={part: value * scale for part, value in parts.items()},
        total_ms=total,
        overhead_share=1 - sum(parts[part] for part in FORWARDS) / total,
    )


def tokens_per_step(metrics: Metrics) -> float:
    """Tokens a sequence gains in one step: 1 without speculation or without a single draft."""
    return (metrics.speculation and metrics.speculation.mean_acceptance_length) or 1.0


def relative_step_cost(baseline: Metrics, arm: Metrics) -> float | None:
    """How many plain steps one speculative step costs."""
    plain, speculative = step_cost(baseline), step_cost(arm)
    return speculative.total_ms / plain.total_ms if plain and speculative else None


def explained_speedup(baseline: Metrics, arm: Metrics) -> float | None:
    """The measured form of Leviathan's theorem 3.8 (2211.17192): step times and acceptance alone.

    Time per token of one sequence without speculation (one step) over that with it (one step / mean
    acceptance length). Knows nothing of prefill, nor of sequences that end at different times.
    """
    cost = relative_step_cost(baseline, arm)
    return tokens_per_step(arm) / cost if cost else None


@dataclass(frozen=True)
class Machine:
    """The fastest that any probe of the run saw, since a floor must not depend on how busy it was then."""

    bandwidth_gb_per_s: float | None
    matmul_tflop_per_s: float | None  # in the dtype of the run

    @classmethod
    def of(cls, run: Run) -> Machine:
        around = [arm.metrics.probe for arm in run.arms.values() if arm.metrics.probe]
        probes = [probe for both in around for probe in (both.before, both.after) if probe]
        bandwidths = [probe.memory_bandwidth_gb_per_s for probe in probes]
        rates = [probe.matmul_tflop_per_s.get(run.params.engine.dtype) for probe in probes]
        return cls(*(max(filter(None, found), default=None) for found in (bandwidths, rates)))


@dataclass(frozen=True)
class Floor:
    """Least milliseconds a token without speculation, by each of two limits."""

    memory_ms: float | None
    matmul_ms: float | None

    @property
    def ms(self) -> float | None:
        return max((known for known in (self.memory_ms, self.matmul_ms) if known), default=None)


def floor_of(run: Run, arm: Arm, machine: Machine) -> Floor:
    """A step reads the target's weights once, for a full batch, and multiplies each with every token: 2 FLOP.

    The tensor parallel ranks share both.
    """
    target, ranks = run.models["target"], run.params.engine.tensor_parallel_size
    read = target.pass_bytes or target.weight_bytes
    memory = matmul = None
    if read and machine.bandwidth_gb_per_s:
        memory = read / ranks / (machine.bandwidth_gb_per_s * 1e9) * 1e3 / arm.name.max_num_seqs
    if read and target.weight_bytes and target.num_parameters and machine.matmul_tflop_per_s:
        applied = target.num_parameters * read / target.weight_bytes
        matmul = 2 * applied / ranks / (machine.matmul_tflop_per_s * 1e12) * 1e3
    return Floor(memory, matmul)


def roofline_share(arm: Arm, machine: Machine) -> float | None:
    """The part of the wall time that only reading weights takes, the draft's forwards included.

    As the arm noted it, by the bandwidth probed before it, brought to the machine's best.
    """
    noted, probe = arm.metrics.roofline_share, arm.metrics.probe and arm.metrics.probe.before
    before = probe.memory_bandwidth_gb_per_s if probe else None
    if noted is None or not before or not machine.bandwidth_gb_per_s:
        return None
    return noted * before / machine.bandwidth_gb_per_s
