"""What users of the draws rely on: the exact law of each, and what happens when a distribution runs out."""

from __future__ import annotations

import doctest
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treespec import drawing, verify
from treespec.drawing import draw_children, sample_from, top_children, without

torch.set_num_threads(1)


def midpoints(count: int) -> list[float]:
    """Uniforms spread so evenly that a token of probability n / count is drawn exactly n times."""
    return [(step + 0.5) / count for step in range(count)]


@pytest.mark.parametrize("module", [drawing, verify])
def test_examples_in_the_docs_hold(module):
    assert doctest.testmod(module).failed == 0


def test_sample_from_draws_each_token_as_often_as_its_probability():
    weights = torch.tensor([0, 3, 0, 5, 2, 0])
    uniforms = torch.tensor(midpoints(10), dtype=torch.float64)
    tokens = sample_from((weights / 10).expand(10, -1), uniforms)
    assert torch.equal(tokens.bincount(minlength=6), weights)


def test_sample_from_needs_no_normalised_row_and_never_draws_a_zero():
    probs = torch.tensor([[0.0, 1e-30, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 0.0]]).repeat(2, 1)
    uniforms = torch.tensor([0.0] * 3 + [1 - 2**-53] * 3, dtype=torch.float64)
    assert sample_from(probs, uniforms).tolist() == [1, 1, -1, 1, 1, -1]


def test_draw_children_has_the_law_of_draws_without_replacement():
    probs = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    uniforms = torch.tensor(list(product(midpoints(12), repeat=3)), dtype=torch.float64)
    drawn = Counter(map(tuple, draw_children(probs.expand(len(uniforms), -1), uniforms).tolist()))
    share = {(0, 1, 2): 1 / 4, (0, 2, 1): 1 / 4, (1, 0, 2): 1 / 6, (1, 2, 0): 1 / 12}
    share |= {(2, 0, 1): 1 / 6, (2, 1, 0): 1 / 12}
    assert {order: count / 12**3 for order, count in drawn.items()} == pytest.approx(share)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any), st.integers(1, 7), st.integers(0, 99))
def test_children_are_distinct_positive_tokens_and_absent_after_the_last(weights, num_children, seed):
    probs = torch.tensor([weights], dtype=torch.float32).softmax(1) * (torch.tensor([weights]) > 0)
    uniforms = torch.rand(1, num_children, generator=torch.Generator().manual_seed(seed))
    drawn = draw_children(probs, uniforms)[0].tolist()
    num_positive = sum(weight > 0 for weight in weights)
    present = drawn[: min(num_positive, num_children)]
    assert drawn[len(present) :] == [-1] * (num_children - len(present))
    assert len(set(present)) == len(present)
    assert all(weights[token] > 0 for token in present)


def test_fewer_children_are_the_first_of_more():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(50, 20, generator=generator).softmax(1)
    uniforms = torch.rand(50, 6, generator=generator)
    assert torch.equal(draw_children(probs, uniforms)[:, :2], draw_children(probs, uniforms[:, :2]))


def test_without_renormalises_what_a_nearly_certain_token_leaves():
    rest = without(torch.tensor([[1.0, 3e-12, 1e-12]]), torch.tensor([0]))
    torch.testing.assert_close(rest, torch.tensor([[0.0, 0.75, 0.25]]))


def test_without_nothing_drawn_and_without_the_last_token():
    probs = torch.tensor([[0.25, 0.75], [0.0, 1.0]])
    assert without(probs, torch.tensor([-1, 1])).tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_top_children_are_best_first_and_absent_where_the_vocabulary_ends():
    logits = torch.tensor([[1.0, 3.0, float("-inf"), 2.0], [4.0, 3.0, 2.0, 1.0]])
    assert top_children(logits, 5).tolist() == [[1, 3, 0, -1, -1], [0, 1, 2, 3, -1]]
