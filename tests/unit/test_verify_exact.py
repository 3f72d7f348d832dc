"""Losslessness on small vocabularies and random trees: exactly, by enumeration, and by sampling.

Each broken variant at the end changes one of the verifier's small functions, and must be caught by both.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import oracle
import pytest
import torch
from enumeration import ROOT_TOKEN, enumerate_outputs, largest_error
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from treespec import verify
from treespec.drawing import draw_children, sample_from
from treespec.tree import TokenTree

torch.set_num_threads(1)
# --- what hypothesis chooses -------------------------------------------------------------------------------


@st.composite
def trees(draw, max_nodes: int = 5) -> TokenTree:
    parents, open_path = [-1], [0]
    for node in range(1, draw(st.integers(1, max_nodes)) + 1):
        open_path = open_path[: draw(st.integers(1, len(open_path)))]
        parents.append(open_path[-1])
        open_path.append(node)
    return TokenTree(tuple(parents))


def conditionals(vocab: int) -> st.SearchStrategy[oracle.Conditional]:
    """Distributions with zeros and ties, one of several by context."""
    weights = st.lists(st.integers(0, 4), min_size=vocab, max_size=vocab).filter(any)
    return st.lists(weights, min_size=1, max_size=4).map(conditional)


def conditional(weights: list[list[int]]) -> oracle.Conditional:
    rows = [[Fraction(weight, sum(row)) for weight in row] for row in weights]
    return lambda context: rows[sum((i + 2) * (token + 1) for i, token in enumerate(context)) % len(rows)]


@st.composite
def cases(draw):
    """A tree, how much of it was scheduled, a target and a draft (now and then the target itself)."""
    tree, vocab = draw(trees()), draw(st.integers(3, 5))
    target = draw(conditionals(vocab))
    draft = draw(st.one_of(conditionals(vocab), st.just(target)))
    return tree, draw(st.integers(0, tree.num_nodes)), target, draft


# --- the proofs --------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=100)
@given(cases())
def test_the_rule_is_lossless_in_fractions(case):
    tree, num_nodes, target, draft = case
    outputs = oracle.output_distribution(tree.parents, num_nodes, target, draft)
    length = tree.depth + 1
    assert oracle.continued(outputs, target, length) == oracle.continued({(): Fraction(1)}, target, length)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(cases())
def test_the_verifier_is_lossless(case):
    """Every position, and every position given the ones before: the joint distribution is the target's."""
    tree, num_nodes, target, draft = case
    with pytest.MonkeyPatch.context() as patch:
        outputs = enumerate_outputs(tree, num_nodes, target, draft, patch)
    assert largest_error(outputs, oracle.output_distribution(tree.parents, num_nodes, target, draft)) < 1e-9
    length = tree.depth + 1
    expected = oracle.continued({(): Fraction(1)}, target, length)
    assert largest_error(oracle.continued(outputs, target, length), expected) < 1e-9


@settings(derandomize=True, deadline=None, max_examples=40)
@given(trees(max_nodes=4), conditionals(3), st.randoms())
def test_following_the_targets_samples_is_lossless(tree, target, random):
    """Any drafts, and every choice of one target sample a node."""
    drafts, contexts = [ROOT_TOKEN], [()]
    for parent, rank in zip(tree.parents[1:], tree.ranks[1:], strict=True):
        drafts.append((random.randrange(3) + rank) % 3 if rank < 3 else -1)
        contexts.append((*contexts[parent], drafts[-1]))
    choices = torch.tensor(list(product(range(3), repeat=len(drafts))))  # [batch, num_nodes + 1]
    batch = len(choices)
    probs = torch.tensor([[float(p) for p in target(context)] for context in contexts], dtype=torch.float64)
    weights = probs[torch.arange(len(drafts)), choices].prod(1)
    verified = verify.verify_matching(
        torch.tensor([drafts]).expand(batch, -1),
        torch.from_numpy(tree.children)[None],
        torch.full((batch,), tree.num_nodes),
        choices,
        tree.depth,
    )
    outputs: dict[tuple[int, ...], float] = {}
    for token_ids, count, weight in zip(
        verified.token_ids.tolist(), verified.num_accepted, weights, strict=True
    ):
        output = tuple(token_ids[: count + 1])
        outputs[output] = outputs.get(output, 0.0) + float(weight)
    length = tree.depth + 1
    expected = oracle.continued({(): Fraction(1)}, target, length)
    assert largest_error(oracle.continued(outputs, target, length), expected) < 1e-9


# --- broken variants must be caught ------------------------------------------------------------------------


def unnormalised_residual(target_probs, draft_probs):
    excess = (target_probs - draft_probs).clamp(min=0)
    return torch.where(excess.sum(1, keepdim=True) > 0, excess, target_probs)


def sibling_left_in(draft_probs, token):
    return draft_probs


def row_before(values, node, at_node=verify.at_node):
    """The target's row of the node before: where a bonus token comes from if rows are off by one."""
    return at_node(values, (node - 1).clamp(min=0) if is_target(values) else node)


def is_target(values) -> bool:
    return values.is_floating_point() and values.shape[1] == TREE.num_nodes + 1


BROKEN = {
    "residual not normalised": ("residual", unnormalised_residual),
    "sibling not removed from the draft": ("without", sibling_left_in),
    "bonus from the wrong row": ("at_node", row_before),
}
TREE = TokenTree.from_paths([[0], [1], [2], [0, 0], [0, 1]])
TARGET = conditional([[4, 1, 3, 2], [1, 5, 1, 1], [2, 2, 0, 3]])
DRAFT = conditional([[1, 4, 2, 1], [3, 1, 1, 2], [1, 1, 1, 5]])


def error_on_the_fixed_case(patch) -> float:
    outputs = enumerate_outputs(TREE, TREE.num_nodes, TARGET, DRAFT, patch)
    expected = oracle.continued({(): Fraction(1)}, TARGET, TREE.depth + 1)
    return largest_error(oracle.continued(outputs, TARGET, TREE.depth + 1), expected)


def test_the_fixed_case_is_exact_as_it_stands(monkeypatch):
    assert error_on_the_fixed_case(monkeypatch) < 1e-12


@pytest.mark.parametrize("variant", BROKEN)
def test_enumeration_catches(variant, monkeypatch):
    monkeypatch.setattr(verify, *BROKEN[variant])
    assert error_on_the_fixed_case(monkeypatch) > 1e-3


# --- the same by sampling, with the real draws and real random numbers -------------------------------------

NUM_SAMPLES = 100_000


def sampled_p_value(reuse_uniforms: bool = False) -> float:
    """Chi-square p-value of the first two output tokens of NUM_SAMPLES steps against the target's own law."""
    generator = torch.Generator().manual_seed(1234)

    def uniform(*shape):
        return torch.rand(NUM_SAMPLES, *shape, generator=generator, dtype=torch.float64)

    # First order: what follows depends on the last token only, so that a table makes a whole level.
    target_table, draft_table = (
        torch.rand(4, 4, generator=generator).pow(2).add(0.02) for _ in range(2)
    )  # [vocab, vocab]
    target_table, draft_table = (table / table.sum(1, keepdim=True) for table in (target_table, draft_table))
    inner = [node for node, count in enumerate(TREE.num_children) if count]
    tokens = torch.full((NUM_SAMPLES, TREE.num_nodes + 1), ROOT_TOKEN)
    for node in inner:  # parents come before their children
        kids = [child for child in TREE.children[node].tolist() if child > 0]
        tokens[:, kids] = draw_children(draft_table[tokens[:, node]], uniform(len(kids)))
    draft_row = torch.zeros(1, TREE.num_nodes + 1, dtype=torch.int64)
    draft_row[0, inner] = torch.arange(len(inner))

    uniforms = uniform(TREE.depth, TREE.max_children)
    verified = verify.verify_rejection(
        tokens,
        torch.from_numpy(TREE.children)[None],
        torch.full((NUM_SAMPLES,), TREE.num_nodes),
        lambda node: verify.at_node(target_table[tokens], node),
        draft_table[tokens[:, inner]],
        draft_row,
        uniforms[:, :1, :1].expand_as(uniforms) if reuse_uniforms else uniforms,
        uniform(),
        TREE.depth,
    )
    first, second = verified.token_ids[:, 0], verified.token_ids[:, 1]
    second = torch.where(second >= 0, second, sample_from(target_table[first], uniform()))
    observed = (first * 4 + second).bincount(minlength=16)
    expected = (target_table[ROOT_TOKEN][:, None] * target_table).flatten() * NUM_SAMPLES
    return chisquare(observed.double(), expected.double() * (NUM_SAMPLES / expected.double().sum())).pvalue


def test_sampled_steps_have_the_targets_distribution():
    assert sampled_p_value() > 1e-3  # fixed seed: an honest rule fails one seed in a thousand


def test_sampling_catches_one_uniform_used_for_every_test():
    assert sampled_p_value(reuse_uniforms=True) < 1e-9


@pytest.mark.parametrize("variant", BROKEN)
def test_sampling_catches(variant, monkeypatch):
    monkeypatch.setattr(verify, *BROKEN[variant])
    assert sampled_p_value() < 1e-9
