"""Runs the tensor verifier on all draft draws and both outcomes of every test, without a random number.

Each outcome is weighed with the acceptance probability, and each bonus token with the distribution, that the
verifier itself used: a wrong rule shows as a wrong distribution of outputs.
"""

from __future__ import annotations

from itertools import product

import oracle
import pytest
import torch

from treespec import verify
from treespec.tree import TokenTree

ROOT_TOKEN = 0


class Seen:
    """The acceptance probabilities and the bonus distribution of one call of `verify_rejection`."""

    def __init__(self, patch: pytest.MonkeyPatch, batch: int, tree: TokenTree) -> None:
        self.acceptance = torch.full(
            (batch, tree.depth, tree.max_children), float("nan"), dtype=torch.float64
        )
        self.bonus_probs = torch.empty(0)
        self._level, self._rank = -1, 0
        self._try_children, self._acceptance_probability = verify.try_children, verify.acceptance_probability
        for function in (self.try_children, self.acceptance_probability, self.sample_from):
            patch.setattr(verify, function.__name__, function)

    def try_children(self, *arguments):
        self._level, self._rank = self._level + 1, 0
        return self._try_children(*arguments)

    def acceptance_probability(self, target_prob, draft_prob):
        acceptance = self._acceptance_probability(target_prob, draft_prob)
        self.acceptance[:, self._level, self._rank] = acceptance
        self._rank += 1
        return acceptance

    def sample_from(self, probs, uniform):
        self.bonus_probs = probs / probs.sum(1, keepdim=True)  # [batch, vocab]
        return torch.zeros_like(uniform, dtype=torch.int64)


def enumerate_outputs(tree, num_nodes, target, draft, patch) -> dict[tuple[int, ...], float]:
    """What `verify_rejection` puts out, with probabilities."""
    draws = list(oracle.draft_draws(tree.parents, num_nodes, draft))
    slots = sorted({(tree.depths[n] - 1, tree.ranks[n]) for n in range(1, num_nodes + 1)})
    outcomes = list(product([True, False], repeat=len(slots)))
    batch = len(draws) * len(outcomes)

    accept = torch.zeros(batch, tree.depth, tree.max_children, dtype=torch.bool)
    for index, (depth, rank) in enumerate(slots):
        accept[:, depth, rank] = torch.tensor([outcome[index] for outcome in outcomes]).repeat(len(draws))
    cut_off = (ROOT_TOKEN,) * (tree.num_nodes - num_nodes)  # plausible tokens: they must not be looked at
    tokens = torch.tensor([(ROOT_TOKEN, *drawn, *cut_off) for drawn, _ in draws])
    target_probs, draft_probs, draft_row = probs_of_nodes(tree, tokens, target, draft)
    each = torch.arange(len(draws)).repeat_interleave(len(outcomes))

    seen = Seen(patch, batch, tree)
    verified = verify.verify_rejection(
        tokens[each],
        torch.from_numpy(tree.children)[None],
        torch.full((batch,), num_nodes),
        lambda node: verify.at_node(target_probs[each], node),
        draft_probs[each],
        draft_row,
        (~accept).double() * (1 - 2**-53),
        torch.zeros(batch, dtype=torch.float64),
        tree.depth,
    )
    tested = slots_tested(tree, num_nodes, tokens[each], verified.path)
    # Of a test that was not made both outcomes are in the batch, with the same output: half the weight each.
    chance = torch.where(accept, seen.acceptance, 1 - seen.acceptance)
    weight = torch.where(tested, chance, 0.5).flatten(1).prod(1) * 2.0 ** (tested[0].numel() - len(slots))
    weight *= torch.tensor([float(prob) for _, prob in draws], dtype=torch.float64)[each]

    outputs: dict[tuple[int, ...], float] = {}
    rows = zip(
        verified.token_ids.tolist(), verified.num_accepted.tolist(), weight, seen.bonus_probs, strict=True
    )
    for token_ids, num_accepted, prob, bonus_probs in rows:
        for bonus, bonus_prob in enumerate((prob * bonus_probs).tolist()):
            output = (*token_ids[:num_accepted], bonus)
            outputs[output] = outputs.get(output, 0.0) + bonus_prob
    return outputs


def probs_of_nodes(tree, tokens, target, draft):
    """target_probs [draws, num_nodes + 1, vocab], draft_probs [draws, num_rows, vocab], draft_row [1, ...]"""
    inner = [node for node, count in enumerate(tree.num_children) if count]
    draft_row = torch.full((1, tree.num_nodes + 1), -1)
    draft_row[0, inner] = torch.arange(len(inner))
    target_rows, draft_rows = [], []
    for row in tokens.tolist():
        contexts = [()]
        for node in range(1, tree.num_nodes + 1):
            contexts.append((*contexts[tree.parents[node]], row[node]))
        target_rows.append([[float(p) for p in target(context)] for context in contexts])
        draft_rows.append([[float(p) for p in draft(contexts[node])] for node in inner])
    float64 = torch.float64
    return torch.tensor(target_rows, dtype=float64), torch.tensor(draft_rows, dtype=float64), draft_row


def slots_tested(tree, num_nodes, tokens, path):
    """Which (depth, rank) were tested, from the path taken alone. bool [batch, max_depth, max_children]"""
    children = torch.from_numpy(tree.children)
    tested = torch.zeros(len(tokens), tree.depth, tree.max_children, dtype=torch.bool)
    node = torch.zeros(len(tokens), dtype=torch.int64)
    for depth in range(tree.depth):
        untried = node >= 0
        for rank in range(tree.max_children):
            child = children[node.clamp(min=0), rank]
            drawn = (
                (child > 0)
                & (child <= num_nodes)
                & (tokens.gather(1, child.clamp(min=0)[:, None])[:, 0] >= 0)
            )
            tested[:, depth, rank] = untried & drawn
            untried &= path[:, depth] != child
        node = path[:, depth]
    return tested


def largest_error(outputs, expected) -> float:
    return max(abs(outputs.get(key, 0) - float(expected.get(key, 0))) for key in {*outputs, *expected})
