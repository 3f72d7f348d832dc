"""How tokens are drawn: one from a distribution, or the children of a tree's node without replacement.

One uniform number makes one draw, by the inverse of the cumulated probabilities. That is a hundredth of the
random numbers an exponential race over the vocabulary takes, and finer: float64 uniforms reach every token
that float32 probabilities can express. The uniforms are arguments: who owns the random generators, one a
request or one a batch, also decides what is reproducible.

    >>> probs = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    >>> sample_from(probs, torch.tensor([0.6]))
    tensor([1])
    >>> draw_children(probs, torch.tensor([[0.6, 0.9, 0.1, 0.1]]))  # the fourth token has no probability
    tensor([[ 1,  2,  0, -1]])
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_from(probs: Tensor, uniform: Tensor) -> Tensor:
    """One token a row: the first whose cumulated probability exceeds `uniform`. Never one of probability 0.

    probs float [rows, vocab], need not be normalised; uniform float [rows] in [0, 1) -> int64 [rows], -1
    for a row of zeros.
    """
    cumulated = probs.cumsum(1, dtype=torch.float64)  # [rows, vocab]
    total = cumulated[:, -1:]
    token = torch.searchsorted(cumulated, uniform[:, None] * total, right=True)
    return torch.where(total > 0, token, -1).squeeze(1)


def draw_children(draft_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw children without replacement, each from what its elder siblings left of `draft_probs`.

    draft_probs float [rows, vocab], uniforms float [rows, num_children] in [0, 1) -> int64
    [rows, num_children] in draw order, which is the order that verification tests them in. A token of
    probability zero is never drawn: where fewer than `num_children` are positive, the other children are
    -1, absent, and `treespec.verify` skips them and all below them. A node may keep the first few of its
    row's children only: they are the draw of so many.
    """
    token_ids = []
    for uniform in uniforms.unbind(1):
        token_ids.append(sample_from(draft_probs, uniform))
        draft_probs = without(draft_probs, token_ids[-1])
    return torch.stack(token_ids, dim=1)


def top_children(logits: Tensor, num_children: int) -> Tensor:
    """The likeliest tokens of each row, best first: greedy drafts.

    logits float [rows, vocab] -> int64 [rows, num_children], -1 where only tokens at -inf are left.
    """
    best = logits.topk(min(num_children, logits.shape[1]), dim=1)
    token_ids = torch.where(best.values > float("-inf"), best.indices, -1)
    return torch.nn.functional.pad(token_ids, (0, num_children - token_ids.shape[1]), value=-1)


def without(draft_probs: Tensor, token: Tensor) -> Tensor:
    """What is left of `draft_probs` once `token` is drawn, renormalised; all zero if nothing is.

    draft_probs float [rows, vocab], token int64 [rows], -1 where nothing was drawn -> [rows, vocab]
    """
    kept = prob_of(draft_probs, token).masked_fill(token >= 0, 0.0)  # of `token`, or of column 0 for -1
    rest = draft_probs.scatter(1, token.clamp(min=0)[:, None], kept[:, None])
    mass = rest.sum(1, keepdim=True)  # summed anew: 1 - draft_probs[token] loses the digits of a small rest
    return rest.div_(mass.masked_fill(mass == 0, 1.0))


def prob_of(probs: Tensor, token: Tensor) -> Tensor:
    """Probability of each row's token: probs [rows, vocab], token [rows] -> [rows]. -1 reads column 0."""
    return probs.gather(1, token.clamp(min=0)[:, None]).squeeze(1)
