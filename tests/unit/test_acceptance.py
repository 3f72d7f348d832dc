"""Acceptance profiles: probabilities by rank, and what a tree yields under them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treespec.acceptance import RankAcceptance, expected_tokens, node_probs
from treespec.tree import TokenTree


def profiles(max_ranks: int = 4) -> st.SearchStrategy[RankAcceptance]:
    """Any profile, zeros and ones and ranks likelier than their elders included."""
    probability = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
    return st.integers(1, max_ranks).flatmap(
        lambda ranks: st.lists(
            st.lists(probability, min_size=ranks, max_size=ranks).map(tuple), min_size=1, max_size=3
        ).map(lambda rows: RankAcceptance(tuple(rows)))
    )


@given(profiles())
def test_at_most_one_child_is_accepted(profile: RankAcceptance) -> None:
    assert (profile.marginals >= 0).all()
    assert (profile.marginals.sum(axis=1) <= 1 + 1e-12).all()
    missed = np.prod(1 - np.asarray(profile.conditional), axis=1)
    np.testing.assert_allclose(profile.marginals.sum(axis=1), 1 - missed, atol=1e-12)


@given(profiles())
def test_profiles_survive_json(profile: RankAcceptance) -> None:
    assert RankAcceptance.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_profile_from_counts() -> None:
    """100 contexts: 80 times the best child, 10 times the second, 5 the third; then a level never reached."""
    profile = RankAcceptance.from_counts(np.array([[80, 10, 5], [0, 0, 0]]), np.array([100, 0]), "counted")
    np.testing.assert_allclose(profile.marginals, [[0.8, 0.1, 0.05], [0, 0, 0]])
    np.testing.assert_allclose(profile.conditional[0], [0.8, 10 / 20, 5 / 10])
    with pytest.raises(ValueError, match="at most the number of contexts"):
        RankAcceptance.from_counts(np.array([[80, 30]]), np.array([100]), "counted")
    with pytest.raises(ValueError, match=r"expected \[L, R\] and \[L\]"):
        RankAcceptance.from_counts(np.array([80, 30]), np.array([100]), "counted")


def test_expected_tokens_by_hand() -> None:
    profile = RankAcceptance(((0.8, 0.5), (0.6, 0.0)))
    tree = TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [1], [2]])
    np.testing.assert_allclose(node_probs(tree, profile), [1, 0.8, 0.48, 0.288, 0.1, 0])
    assert expected_tokens(tree, profile) == pytest.approx(2.668)


@pytest.mark.parametrize("rows", [(), ((),), ((0.5,), (0.5, 0.5)), ((1.5,),), ((-0.1,),), ((float("nan"),),)])
def test_impossible_profiles_are_refused(rows: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="acceptance"):
        RankAcceptance(rows)
