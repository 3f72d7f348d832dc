"""A changed output is found wherever it hides, and a near-tie is the only excuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.reporting.lossless import TOLERANCE, compare_greedy, compare_sampled
from stages.reporting.sampled import distribution_p_value

IDS = [11, 12, 13, 14]
RUNNERS_UP = [21, 22, 23, 24]


def baseline(gaps: list[float] | None = None, **columns) -> pd.DataFrame:
    row = {"prompt_index": 0, "repeat": 0, "output_token_ids": IDS, "text": "one two three four"}
    row |= {"top2_gap": gaps or [3.0] * 4, "runner_up_ids": RUNNERS_UP} | columns
    return pd.DataFrame([row])


def arm(ids: list[int], text: str = "one two 3 four") -> pd.DataFrame:
    return pd.DataFrame([{"prompt_index": 0, "repeat": 1, "output_token_ids": ids, "text": text}])


def test_equal_ids_are_identical():
    found = compare_greedy(baseline(), arm(list(IDS)), "float32")
    assert (found.verdict, found.lossless, found.num_compared) == ("identical", True, 1)


def test_the_runner_up_within_rounding_is_a_near_tie_and_what_follows_is_not_compared():
    found = compare_greedy(baseline([3.0, 3.0, 0.2, 3.0]), arm([11, 12, 23, 99, 98]), "bfloat16")
    (divergence,) = found.divergences
    assert (found.verdict, found.lossless) == ("near_ties", True)
    assert (divergence.position, divergence.baseline_token, divergence.arm_token) == (2, 13, 23)
    assert divergence.gap == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("gap", "ids", "dtype"),
    [
        (0.2, [11, 12, 23, 14], "float16"),  # a gap that float16 resolves
        (0.2, [11, 12, 23, 14], "float32"),
        (0.001, [11, 12, 99, 14], "bfloat16"),  # a tie, but not the runner-up
        (0.001, [11, 12], "bfloat16"),  # cut short
        (0.001, [11, 12, 13, 14, 15], "bfloat16"),  # too long
        (0.001, [], "bfloat16"),
    ],
)
def test_anything_else_is_not_lossless(gap, ids, dtype):
    found = compare_greedy(baseline([3.0, 3.0, gap, 3.0]), arm(ids), dtype)
    assert (found.verdict, found.lossless, found.num_unexplained) == ("not_lossless", False, 1)


@given(st.integers(0, 4))
def test_a_prefix_is_never_taken_for_the_whole(length):
    found = compare_greedy(baseline(), arm(IDS[:length]), "bfloat16")
    assert (found.verdict == "identical") == (length == 4)
    if length < 4:
        assert (found.divergences[0].position, found.divergences[0].arm_token) == (length, None)


@pytest.mark.parametrize(
    ("distance", "token", "verdict"),
    [(0.1, 43, "near_ties"), (0.9, 43, "not_lossless"), (0.1, 99, "not_lossless")],
)
def test_more_than_two_tokens_may_tie(distance, token, verdict):
    further = {
        "further_ids": [[31], [32], [33, 43], [34]],
        "further_gaps": [[5.0], [5.0], [0.05, distance], [5.0]],
    }
    found = compare_greedy(baseline([3.0, 3.0, 0.0, 3.0], **further), arm([11, 12, token, 14]), "bfloat16")
    assert found.verdict == verdict
    if token == 43:
        assert found.divergences[0].gap == pytest.approx(distance)


@pytest.mark.parametrize("column", [{"top2_gap": []}, {"top2_gap": [np.nan] * 4}, {"runner_up_ids": []}])
def test_without_a_recorded_gap_nothing_is_excused(column):
    assert compare_greedy(baseline(**column), arm([11, 12, 23, 14]), "bfloat16").lossless is False


def test_the_tolerance_follows_the_dtype():
    assert TOLERANCE["bfloat16"] > TOLERANCE["float16"] > TOLERANCE["float32"] > 0


def test_both_texts_are_shown_where_they_part():
    (divergence,) = compare_greedy(baseline(), arm([11, 12, 99, 14]), "float32").divergences
    assert divergence.baseline_text.endswith("three four")
    assert divergence.arm_text.endswith("3 four")


def sampled(rng: np.random.Generator, power: float = 1.0, prompts: int = 8, repeats: int = 3) -> pd.DataFrame:
    """Outputs of 60 tokens, each prompt with a distribution of its own; `power` sharpens all of them."""
    rows = []
    for prompt in range(prompts):
        shares = np.random.default_rng(prompt).dirichlet(np.full(40, 0.3)) ** power
        for repeat in range(repeats):
            ids = rng.choice(40, 60, p=shares / shares.sum())
            rows.append({"prompt_index": prompt, "repeat": repeat, "output_token_ids": ids})
    return pd.DataFrame(rows)


def test_a_right_sampler_is_called_wrong_as_rarely_as_the_error_rate_says():
    rng = np.random.default_rng(0)
    values = [distribution_p_value(sampled(rng), sampled(rng), 0.05, 0) for _ in range(80)]
    assert sum(value < 0.05 for value in values) <= 10  # 4 expected; 11 or more happen once in 500
    assert 0.3 < np.mean(values) < 0.7


def test_a_sharpened_sampler_is_noticed():
    rng = np.random.default_rng(0)
    found = compare_sampled(sampled(rng), sampled(rng, power=2.0), seed=0, num_tests=10)
    assert (found.verdict, found.lossless) == ("not_lossless", False)
    assert compare_sampled(sampled(rng), sampled(rng), seed=0, num_tests=10).verdict == "same_distribution"


def test_prompts_that_differ_are_not_taken_for_arms_that_differ():
    rng = np.random.default_rng(1)
    rows = sampled(rng)
    shuffled = sampled(rng).sample(frac=1, random_state=0)
    assert distribution_p_value(rows, shuffled, 0.01, 0) > 0.01
    assert distribution_p_value(rows, rows, 0.01, 0) == 1.0


@pytest.mark.parametrize(("prompts", "repeats"), [(1, 1), (8, 1), (1, 3)])
def test_with_too_few_outputs_a_prompt_nothing_is_claimed(prompts, repeats):
    rng = np.random.default_rng(0)
    arms = [sampled(rng, power, prompts, repeats) for power in (1.0, 8.0)]
    found = compare_sampled(*arms, seed=0)
    assert (found.verdict, found.lossless, found.p_value) == ("not_tested", None, None)
