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


def bandwidth_gb_per_s(run: Run, arm: Arm) -> float | None:
    """Memory bandwidth measured around the arm, else by the environment stage."""
    around = (arm.metrics.probe.before, arm.metrics.probe.after) if arm.metrics.probe else ()
    measured = [probe.memory_bandwidth_gb_per_s for probe in around if probe]
    known = [value for value in measured if value]
    if known:
        return sum(known) / len(known)
    return run.probe.memory_bandwidth_gb_per_s if run.probe else None


def floor_ms(run: Run, arm: Arm) -> float | None:
    """Least time per token without speculation: target weights read once a step, shared by a full batch."""
    weight_bytes, bandwidth = run.models["target"].weight_bytes, bandwidth_gb_per_s(run, arm)
    if not weight_bytes or not bandwidth:
        return None
    return weight_bytes / (bandwidth * 1e9) * 1e3 / arm.name.max_num_seqs
