"""Is the output unchanged? Every request of an arm against the baseline of its temperature.

Greedy decoding must give the baseline's ids, token by token, lengths included. One excuse exists: where the
baseline's best tokens lie closer together than the dtype can resolve, any of them may win, since batch shapes
change the order of sums. A first divergence is such a near-tie if the arm chose the baseline's runner-up or
one of its further candidates, and the logprob gap to the best is within TOLERANCE; what follows a divergence
is another text and not compared.

The rule: two logits of magnitude 16 to 32, each off by two units in the last place, so 4 * 16 * epsilon.
In float32 not storage but the order of long sums sets the error, hence a larger multiple.

Sampled output must follow the baseline's distribution: see stages.reporting.sampled.

    verdict   identical | near_ties | not_lossless | same_distribution | not_tested (too few sampled outputs)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from stages.reporting.sampled import distribution_p_value

TOLERANCE = {"bfloat16": 4 * 16 * 2**-7, "float16": 4 * 16 * 2**-10, "float32": 1e-4}
ERROR_RATE = 0.01  # how often a report of right samplers calls any of them wrong

Verdict = Literal["identical", "near_ties", "not_lossless", "not_tested", "same_distribution"]


@dataclass(frozen=True)
class Divergence:
    """The first position where an output leaves the baseline's. A token is None where one side has ended."""

    prompt_index: int
    repeat: int
    position: int
    baseline_token: int | None
    arm_token: int | None
    gap: float | None  # from the baseline's best token to the arm's, or to the second where that is unknown
    is_candidate: bool  # the arm's token is among those that the baseline noted
    explained: bool
    baseline_text: str
    arm_text: str


@dataclass(frozen=True)
class Losslessness:
    verdict: Verdict
    num_compared: int
    divergences: tuple[Divergence, ...]
    p_value: float | None = None

    @property
    def lossless(self) -> bool | None:
        """None where nothing could be tested."""
        return None if self.verdict == "not_tested" else self.verdict != "not_lossless"

    @property
    def num_unexplained(self) -> int:
        return sum(not divergence.explained for divergence in self.divergences)


def compare_greedy(baseline: pd.DataFrame, arm: pd.DataFrame, dtype: str) -> Losslessness:
    """Every row of `arm` against repeat 0 of `baseline`, which carries what else each position could be."""
    reference = baseline[baseline["repeat"] == 0].set_index("prompt_index")
    divergences = []
    for row in arm.to_dict("records"):
        divergence = first_divergence(reference.loc[row["prompt_index"]].to_dict(), row, TOLERANCE[dtype])
        if divergence is not None:
            divergences.append(divergence)
    if not divergences:
        verdict: Verdict = "identical"
    else:
        verdict = "near_ties" if all(item.explained for item in divergences) else "not_lossless"
    return Losslessness(verdict, len(arm), tuple(divergences))


def first_divergence(expected: dict, actual: dict, tolerance: float) -> Divergence | None:
    """Where `actual` leaves `expected` (two request rows), or None. A shorter output diverges at its end."""
    ours = [int(token) for token in actual["output_token_ids"]]
    theirs = [int(token) for token in expected["output_token_ids"]]
    if ours == theirs:
        return None
    position = next(
        (place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    arm_token = _at(ours, position)
    gaps, known_gap = _candidates(expected, position)
    is_candidate = arm_token is not None and arm_token in gaps
    if is_candidate:
        known_gap = gaps[arm_token]
    before, after = _snippets(str(expected["text"]), str(actual["text"]))
    return Divergence(
        prompt_index=int(actual["prompt_index"]),
        repeat=int(actual["repeat"]),
        position=position,
        baseline_token=_at(theirs, position),
        arm_token=arm_token,
        gap=known_gap,
        is_candidate=is_candidate,
        explained=is_candidate and known_gap is not None and known_gap <= tolerance,
        baseline_text=before,
        arm_text=after,
    )


def compare_sampled(baseline: pd.DataFrame, arm: pd.DataFrame, seed: int, num_tests: int = 1) -> Losslessness:
    """Sampled output: the distribution test, at ERROR_RATE shared by the `num_tests` of one report."""
    error_rate = ERROR_RATE / num_tests
    p_value = distribution_p_value(baseline, arm, error_rate, seed)
    if p_value is None:
        return Losslessness("not_tested", len(arm), ())
    verdict: Verdict = "same_distribution" if p_value >= error_rate else "not_lossless"
    return Losslessness(verdict, len(arm), (), p_value)


def _candidates(expected: dict, position: int) -> tuple[dict[int, float | None], float | None]:
    """Gap to the best of each token that the baseline noted beside its own, and the runner-up's."""
    gap, runner_up = (_at(expected.get(name), position) for name in ("top2_gap", "runner_up_ids"))
    gap = None if gap is None or gap != gap else float(gap)
    further, distances = (_at(expected.get(name), position) for name in ("further_ids", "further_gaps"))
    found = {} if further is None else dict(zip(map(int, further), map(float, distances), strict=True))
    return (found if runner_up is None else {**found, int(runner_up): gap}), gap


def _at(values, position: int):
    """values[position], or None beyond the end and for an absent list."""
    return values[position] if values is not None and position < len(values) else None


def _snippets(first: str, second: str, before: int = 24, after: int = 36) -> tuple[str, str]:
    """Both texts around the place where they part."""
    pairs = zip(first, second, strict=False)
    start = next(
        (place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )
    begin = max(0, start - before)
    lead = "…" if begin else ""
    return tuple(lead + text[begin : start + after] for text in (first, second))
