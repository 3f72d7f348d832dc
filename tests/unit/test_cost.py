"""The cost model and the laws: their limits, and figures that others published."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treespec.acceptance import RankAcceptance, expected_tokens
from treespec.cost import (
    CostModel,
    best_chain,
    best_chain_length,
    chain_speedup,
    chain_tokens,
    decode_floor_ms,
    inner_widths,
    verify_cost_floor,
)
from treespec.tree import TokenTree

COST = CostModel(
    target_ms={1: 10.0, 4: 11.0, 16: 14.0},
    draft_ms={1: 1.0, 2: 1.2, 8: 2.4},
    overhead_ms=0.5,
    baseline_overhead_ms=0.2,
)
CURVES = st.dictionaries(st.integers(1, 600), st.floats(0.01, 1000), min_size=1, max_size=8)
RATES = st.floats(0, 1)


@given(RATES.filter(lambda rate: rate < 0.95))
def test_free_drafts_and_long_chains_reach_the_bound(rate: float) -> None:
    assert chain_speedup(rate, 2000, 0.0) == pytest.approx(1 / (1 - rate))


@given(RATES.filter(lambda rate: rate < 0.999), st.integers(1, 64), st.floats(0, 2))
def test_leviathans_closed_form(rate: float, k: int, ratio: float) -> None:
    closed = (1 - rate ** (k + 1)) / ((1 - rate) * (k * ratio + 1))
    assert chain_speedup(rate, k, ratio) == pytest.approx(closed)


@given(st.integers(1, 64))
def test_certain_and_hopeless_drafts(k: int) -> None:
    assert chain_tokens(1.0, k) == k + 1
    assert chain_tokens(0.0, k) == 1
    assert chain_speedup(0.0, k, 0.1) < 1


@given(RATES, st.integers(1, 64))
def test_chain_law_is_the_tree_of_width_one(rate: float, k: int) -> None:
    profile = RankAcceptance(((rate,),))
    assert expected_tokens(TokenTree.chain(k), profile) == pytest.approx(chain_tokens(rate, k))


@given(RATES, st.floats(0.001, 1))
def test_best_chain_length_is_the_best(rate: float, ratio: float) -> None:
    best = best_chain_length(rate, ratio, 32)
    assert all(chain_speedup(rate, best, ratio) >= chain_speedup(rate, k, ratio) for k in range(1, 33))


def test_free_target_tokens_make_the_measured_law_leviathans() -> None:
    """No dearer target for k + 1 tokens, no overhead: both laws agree, and so does the best k."""
    cost, profile = CostModel({1: 14.1, 64: 14.1}, {1: 1.8}), RankAcceptance(((0.8,),))
    for k in (1, 4, 9):
        chain = TokenTree.chain(k)
        speedup = cost.speedup(chain, expected_tokens(chain, profile))
        assert speedup == pytest.approx(chain_speedup(0.8, k, 1.8 / 14.1))
    assert best_chain(cost, profile, 32) == best_chain_length(0.8, 1.8 / 14.1, 32)


def test_an_8b_draft_for_a_70b_target_wants_five_to_nine_tokens() -> None:
    """What others report for this pair, and what the profile behind trees/mc_sim_8b_*.json says of itself."""
    assert best_chain_length(0.82, 8 / 70) == 6


@given(CURVES, st.integers(1, 700))
def test_interpolation_keeps_to_the_measured_points(curve: dict[int, float], tokens: int) -> None:
    cost = CostModel(curve, {1: 1.0})
    for point, ms in curve.items():
        assert float(cost.target(point)) == pytest.approx(ms)
    if tokens <= max(curve):
        assert min(curve.values()) - 1e-9 <= float(cost.target(tokens)) <= max(curve.values()) + 1e-9
    else:
        assert float(cost.target(tokens)) >= curve[max(curve)] - 1e-9  # more tokens are never cheaper there


def test_interpolation_by_hand() -> None:
    np.testing.assert_allclose(
        COST.target(np.array([1, 2, 4, 10, 16, 20])), [10, 10 + 1 / 3, 11, 12.5, 14, 15]
    )
    assert float(CostModel({8: 12.0}, {1: 1.0}).target(100)) == 12.0  # one point tells of no slope


def test_a_step_drafts_inner_nodes_level_by_level() -> None:
    tree = TokenTree.from_paths([[0], [1], [0, 0], [1, 0], [1, 1], [0, 0, 0]])
    assert inner_widths(tree).tolist() == [1, 2, 1]
    assert COST.step_ms(tree) == pytest.approx(1.0 + 1.2 + 1.0 + 11.75 + 0.5)
    assert COST.step_ms(tree, batch_size=2) == pytest.approx(1.2 + 1.6 + 1.2 + 13.5 + 0.5)
    assert COST.ms_per_token(tree, 3.0) == pytest.approx(COST.step_ms(tree) / 3)
    assert COST.speedup(tree, 3.0) == pytest.approx(10.2 * 3 / COST.step_ms(tree))


@given(st.integers(1, 15))
def test_a_chain_step_is_k_drafts_and_one_verification(k: int) -> None:
    assert COST.step_ms(TokenTree.chain(k)) == pytest.approx(k * 1.0 + float(COST.target(k + 1)) + 0.5)


def test_dear_drafts_want_the_shortest_chain() -> None:
    dear = dataclasses.replace(COST, draft_ms={1: 50.0})
    assert best_chain(dear, RankAcceptance(((0.9,),)), 8) == 1


@given(CURVES, CURVES, st.floats(0, 10), st.floats(0, 10))
def test_costs_survive_json(target: dict, draft: dict, overhead: float, baseline: float) -> None:
    cost = CostModel(target, draft, overhead, baseline)
    assert CostModel.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_ms": {}}, "target_ms: no point"),
        ({"target_ms": {0: 1.0}}, "target_ms: 0: 1.0"),
        ({"draft_ms": {1: 0.0}}, "draft_ms: 1: 0.0"),
        ({"draft_ms": {1: float("nan")}}, "draft_ms: 1: nan"),
        ({"overhead_ms": -1.0}, "overhead_ms: -1.0"),
        ({"draft_ms": None}, "no costs"),
    ],
)
def test_impossible_costs_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostModel.from_dict({"target_ms": {1: 10.0}, "draft_ms": {1: 1.0}} | fields)


def test_rooflines() -> None:
    assert decode_floor_ms(140e9, 3350) == pytest.approx(41.79, abs=0.01)  # 70B in bf16 on one H100's memory
    assert verify_cost_floor(1, 295) == verify_cost_floor(295, 295) == 1
    assert verify_cost_floor(512, 295) == pytest.approx(1.7, abs=0.05)
    assert verify_cost_floor(512, 206) == pytest.approx(2.5, abs=0.05)


def test_rates_outside_probability_are_refused() -> None:
    with pytest.raises(ValueError, match=r"acceptance rate 1\.2; expected 0 to 1"):
        chain_tokens(1.2, 3)
