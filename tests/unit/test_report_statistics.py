"""The intervals that every claim of the report rests on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.reporting.statistics import (
    Bootstrap,
    mean_of,
    paired_ratio,
    per_prompt,
    ratio_of,
    split_repeats,
    spread,
    wilson,
)

BOOTSTRAP = Bootstrap(confidence=0.95, resamples=500, seed=0)
times = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12)


def requests_of(times_ms: list[list[float]], tokens: int = 10) -> pd.DataFrame:
    """`times_ms[repeat][prompt]` as request rows."""
    rows = [
        {"prompt_index": prompt, "repeat": repeat, "num_output_tokens": tokens, "e2e_ms": value}
        for repeat, values in enumerate(times_ms)
        for prompt, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@given(times)
@settings(max_examples=30, deadline=None)
def test_an_arm_against_itself_gives_exactly_one(values):
    ratio = paired_ratio(np.array(values), np.array(values), BOOTSTRAP)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.0, 1.0, 1.0))
    assert ratio.contains(ratio.value)


@given(times, st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_a_uniform_speedup_has_no_uncertainty_however_prompts_differ(values, factor):
    ratio = paired_ratio(np.array(values) * factor, np.array(values), BOOTSTRAP)
    assert ratio.value == pytest.approx(factor)
    assert ratio.high - ratio.low == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=2, max_size=10))
@settings(max_examples=30, deadline=None)
def test_the_interval_holds_the_estimate_and_is_finite(pairs):
    baseline, arm = np.array(pairs).T
    ratio = paired_ratio(baseline, arm, BOOTSTRAP)
    assert np.isfinite([ratio.low, ratio.value, ratio.high]).all()
    assert ratio.low <= ratio.value + 1e-9
    assert ratio.value <= ratio.high + 1e-9


def test_a_baseline_measured_twice_gives_an_interval_that_contains_one_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        speed = 20 * np.exp(0.1 * rng.standard_normal(8))
        first, second = (speed * np.exp(0.03 * rng.standard_normal(8)) for _ in range(2))
        hits += paired_ratio(first, second, BOOTSTRAP).contains(1.0)
    assert hits >= 88


def test_pairing_removes_the_spread_between_prompts():
    rng = np.random.default_rng(0)
    arm = rng.uniform(5, 50, 10)
    baseline = arm * 1.5 * (1 + 0.01 * rng.standard_normal(10))
    ratio = paired_ratio(baseline, arm, BOOTSTRAP)
    assert 1.45 < ratio.low < ratio.high < 1.55


def test_the_same_seed_gives_the_same_interval():
    baseline, arm = np.array([3.0, 5.0, 9.0]), np.array([2.0, 2.0, 4.0])
    assert paired_ratio(baseline, arm, BOOTSTRAP) == paired_ratio(baseline, arm, BOOTSTRAP)


def test_one_prompt_has_an_estimate_and_no_interval():
    ratio = paired_ratio(np.array([2.0]), np.array([1.0]), BOOTSTRAP)
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (2.0, None, None, 1)
    assert not ratio.contains(2.0)


@pytest.mark.parametrize("values", [np.array([]), np.array([0.0, 0.0])])
def test_no_time_gives_no_ratio(values):
    assert paired_ratio(values, values, BOOTSTRAP).value is None


def test_vectors_of_different_prompts_are_refused():
    with pytest.raises(ValueError, match="two equal vectors"):
        paired_ratio(np.ones(2), np.ones(3), BOOTSTRAP)


def test_time_per_token_is_averaged_over_repeats_and_paired_by_prompt():
    baseline, arm = (
        requests_of([[100.0, 400.0], [300.0, 400.0]]),
        requests_of([[50.0, 100.0], [150.0, 100.0]]),
    )
    assert per_prompt(baseline, per_token=True).tolist() == [20.0, 40.0]
    shuffled = arm.sample(frac=1, random_state=0)
    assert ratio_of(per_prompt(baseline, True), per_prompt(shuffled, True), BOOTSTRAP).value == 60 / 20


def test_a_request_without_tokens_is_left_out_rather_than_divided_by():
    requests = requests_of([[100.0, 100.0]])
    requests.loc[0, "num_output_tokens"] = 0
    assert per_prompt(requests, per_token=True).index.tolist() == [1]


def test_the_aa_check_needs_two_repeats():
    assert split_repeats(requests_of([[1.0, 2.0]]), BOOTSTRAP) is None
    assert split_repeats(requests_of([[1.0, 2.0], [1.0, 2.0]]), BOOTSTRAP).contains(1.0)


def test_wilson_agrees_with_the_published_example():
    ratio = wilson(81, 263, 0.95)  # Newcombe 1998, table I
    assert (ratio.low, ratio.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson(0, 8, 0.95).low == 0
    assert wilson(0, 0, 0.95).value is None


def test_spread_ignores_what_was_not_measured():
    assert spread([10.0, None, 12.0]) == pytest.approx(0.2)
    assert spread([10.0]) is None
    assert spread([]) is None


def test_the_mean_over_prompts_has_an_interval():
    ratio = mean_of(pd.Series([10.0, 12.0, 14.0, 11.0, 13.0]), BOOTSTRAP)
    assert ratio.value == 12.0
    assert 9 < ratio.low < 12 < ratio.high < 15
