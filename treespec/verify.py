"""Lossless verification: which drafted tokens of a token tree are kept, and which token comes after them.

Two rules, both with the target's own distribution as output, whatever the draft model is:

- `verify_matching`, `verify_sampling`: the target chooses one token at a node and the walk follows the child
  that equals it. The choice is the argmax in greedy decoding, a sample where deterministic drafts meet
  sampling.
- `verify_rejection`: the children were drawn from the draft's distribution without replacement
  (`treespec.drawing.draw_children`) and each is kept or rejected at random: recursive rejection sampling
  (Sequoia, 2402.12374), which with one child a node is the algorithm of Chen et al. (2302.01318).

A whole batch walks down together: one step a level, one a child rank in it, no work on the host that waits
for the device. Rules that sample need the target's distributions along the walk only, so they ask for them
node by node: to process the logits of all nodes would cost many times as much. Requests may have different
trees; of each only the first `num_nodes` nodes count, and a node whose token is -1 is absent, with all below
it.

    >>> children = torch.tensor([[[1, 3], [2, -1], [-1, -1], [-1, -1]]])  # TokenTree.children
    >>> draft_token_ids = torch.tensor([[0, 5, 6, 7]])
    >>> target_token_ids = torch.tensor([[5, 6, 8, 9]])
    >>> verify_matching(draft_token_ids, children, torch.tensor([3]), target_token_ids, max_depth=2).token_ids
    tensor([[5, 6, 8]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from treespec.drawing import prob_of, sample_from, without

# The target's distribution after each request's node: int64 [batch] -> float [batch, vocab]
TargetProbs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Verified:
    """What one step outputs. Rows are padded with -1; a row has `num_accepted + 1` tokens."""

    token_ids: Tensor  # int64 [batch, max_depth + 1]: the accepted tokens, then the bonus token
    path: Tensor  # int64 [batch, max_depth]: the accepted nodes, from depth 1 downwards
    num_accepted: Tensor  # int64 [batch]


def verify_matching(
    draft_token_ids: Tensor,  # int [batch, num_nodes + 1]; column 0, the root's own token, is unused
    children: Tensor,  # int64 [batch or 1, num_nodes + 1, max_children]; node of each child, -1: none
    num_nodes: Tensor,  # int64 [batch]
    target_token_ids: Tensor,  # int [batch, num_nodes + 1]; the target's choice after each node
    max_depth: int,
) -> Verified:
    """Follow the child that equals the target's choice; where none does, that choice is the bonus token.

    Lossless because every output token is the target's own, chosen without a look at the drafts.
    """
    nodes, tokens = existing_children(children, num_nodes, draft_token_ids)
    matches = (tokens == target_token_ids[:, :, None]) & (tokens >= 0)  # [batch, num_nodes + 1, max_children]
    first_match = nodes.gather(2, matches.byte().argmax(2, keepdim=True)).squeeze(2)
    follower = torch.where(matches.any(2), first_match, -1)  # [batch, num_nodes + 1]

    node = torch.zeros_like(num_nodes)
    path = follower.new_full((len(node), max_depth), -1)
    for level in range(max_depth):
        child = at_node(follower, node)  # a walk that has ended stays at its node and finds -1 again
        path[:, level] = child
        node = torch.where(child >= 0, child, node)
    return _verified(path, draft_token_ids, bonus=at_node(target_token_ids, node))


def verify_sampling(
    draft_token_ids: Tensor,  # int [batch, num_nodes + 1]
    children: Tensor,  # int64 [batch or 1, num_nodes + 1, max_children]; node of each child, -1: none
    num_nodes: Tensor,  # int64 [batch]
    target_probs: TargetProbs,
    uniforms: Tensor,  # float [batch, num_nodes + 1] in [0, 1); one for the choice after each node
    max_depth: int,
) -> Verified:
    """`verify_matching` of one sample a node from the target's distribution, drawn where the walk is."""
    nodes, tokens = existing_children(children, num_nodes, draft_token_ids)
    node = torch.zeros_like(num_nodes)
    walking = torch.ones_like(num_nodes, dtype=torch.bool)
    path = num_nodes.new_full((len(num_nodes), max_depth), -1)
    chosen = sample_from(target_probs(node), at_node(uniforms, node))
    for level in range(max_depth):
        matches = (at_node(tokens, node) == chosen[:, None]) & walking[:, None]  # [batch, max_children]
        walking = matches.any(1)
        if surely_none(walking):
            break
        child = at_node(nodes, node).gather(1, matches.byte().argmax(1, keepdim=True)).squeeze(1)
        path[:, level] = torch.where(walking, child, -1)
        node = torch.where(walking, child, node)
        # A walk that has ended draws the same again: same node, same number.
        chosen = sample_from(target_probs(node), at_node(uniforms, node))
    return _verified(path, draft_token_ids, bonus=chosen)


def verify_rejection(
    draft_token_ids: Tensor,  # int [batch, num_nodes + 1]; siblings in draw order
    children: Tensor,  # int64 [batch or 1, num_nodes + 1, max_children]; node of each child, -1: none
    num_nodes: Tensor,  # int64 [batch]
    target_probs: TargetProbs,
    draft_probs: Tensor,  # float [batch, num_rows, vocab]; what the children of inner nodes were drawn from
    draft_row: Tensor,  # int64 [batch or 1, num_nodes + 1]; a node's row in draft_probs, any for a leaf
    uniforms: Tensor,  # float [batch, max_depth, max_children] in [0, 1); one for every test
    bonus_uniform: Tensor,  # float [batch] in [0, 1)
    max_depth: int,
    is_greedy: Tensor | None = None,  # bool [batch]; requests at temperature 0
    children_per_level: Sequence[int] | None = None,  # [max_depth]; skips ranks that no node there has
) -> Verified:
    """Walk down through accepted children; where all were rejected, sample what the target has left.

    Rows of `target_probs` and `draft_probs` sum to 1; temperature, top-k, penalties ... are in them already
    (alike in both accepts most, but is not needed). A greedy request needs one-hot rows of `target_probs`;
    its children may be chosen in any way and its `draft_probs` be any finite numbers. Float64 uniforms are
    better: float32 ones come in steps of 2^-24. Raises ValueError unless there is a uniform for every test.
    """
    batch, max_children = len(draft_token_ids), children.shape[2]
    if uniforms.shape != (batch, max_depth, max_children) or bonus_uniform.shape != (batch,):
        raise ValueError(
            f"uniforms: shapes {tuple(uniforms.shape)} and {tuple(bonus_uniform.shape)}; "
            f"expected {(batch, max_depth, max_children)} and {(batch,)}"
        )
    if children_per_level is None:
        children_per_level = [max_children] * max_depth
    if is_greedy is None:
        is_greedy = torch.zeros_like(num_nodes, dtype=torch.bool)
    nodes, tokens = existing_children(children, num_nodes, draft_token_ids)
    draft_row = draft_row.expand(batch, -1).clamp(min=0)  # [batch, num_nodes + 1]

    node = torch.zeros_like(num_nodes)
    walking = torch.ones_like(is_greedy)
    target_rest = target_probs(node)  # [batch, vocab]; what the bonus token is drawn from
    path = num_nodes.new_full((batch, max_depth), -1)
    for level, width in enumerate(children_per_level):
        if surely_none(walking):
            break
        child, target_rest = try_children(
            at_node(nodes, node)[:, :width],
            at_node(tokens, node)[:, :width].masked_fill(~walking[:, None], -1),  # no test after the end
            target_rest,
            at_node(draft_probs, at_node(draft_row, node)),
            uniforms[:, level, :width],
            is_greedy,
        )
        walking = child >= 0
        path[:, level] = child
        node = torch.where(walking, child, node)
        if not surely_none(walking):
            target_rest = per_row(walking, target_probs(node), target_rest)
    return _verified(path, draft_token_ids, bonus=sample_from(target_rest, bonus_uniform))


def try_children(
    nodes: Tensor,  # int64 [batch, num_children]
    tokens: Tensor,  # int64 [batch, num_children] in draw order; -1: absent
    target_probs: Tensor,  # float [batch, vocab]
    draft_probs: Tensor,  # float [batch, vocab]
    uniforms: Tensor,  # float [batch, num_children]
    is_greedy: Tensor,  # bool [batch]
) -> tuple[Tensor, Tensor]:
    """Test one node's children, up to the first that is accepted.

    Returns that child's node, int64 [batch], -1 for none, and what the rejected ones left of
    `target_probs`, float [batch, vocab].
    """
    accepted_child = torch.full_like(is_greedy, -1, dtype=torch.int64)
    for rank, token in enumerate(tokens.unbind(1)):
        tested = (accepted_child < 0) & (token >= 0)
        if surely_none(tested):
            break
        if rank > 0:
            draft_probs = without(draft_probs, tokens[:, rank - 1])
        target_prob, draft_prob = prob_of(target_probs, token), prob_of(draft_probs, token)  # [batch]
        tested &= (draft_prob > 0) | is_greedy  # else it was not drawn, and its rejection would mean nothing
        acceptance = torch.where(is_greedy, target_prob, acceptance_probability(target_prob, draft_prob))
        accepted = tested & (uniforms[:, rank] < acceptance)
        accepted_child = torch.where(accepted, nodes[:, rank], accepted_child)
        rejected = tested & ~accepted & ~is_greedy
        if not surely_none(rejected):
            target_probs = per_row(rejected, residual(target_probs, draft_probs), target_probs)
    return accepted_child, target_probs


def acceptance_probability(target_prob: Tensor, draft_prob: Tensor) -> Tensor:
    """min(1, target / draft) of one drawn token (2302.01318, algorithm 2). All [batch]."""
    return (target_prob / draft_prob).clamp(max=1)


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """normalise(max(target - draft, 0)): what a rejected draw leaves of the target. All [batch, vocab].

    Equal distributions leave nothing, but then only rounding can reject: the target stands for itself.
    """
    excess = (target_probs - draft_probs).clamp_(min=0)
    mass = excess.sum(1, keepdim=True)
    some = (mass > 0).squeeze(1)
    return per_row(some, excess.div_(mass.masked_fill(mass == 0, 1.0)), target_probs)


def per_row(choose: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Rows of `chosen` where `choose` [batch] is true, else of `other`; finite floats [batch, vocab].

    An interpolation with weights 0 and 1 is exact, and on CPU five times as fast as `torch.where`.
    """
    return other.lerp(chosen, choose[:, None].to(other.dtype))


def surely_none(mask: Tensor) -> bool:
    """Whether no element is true, as far as a look costs nothing: on CUDA it would wait for the device."""
    return mask.device.type == "cpu" and not mask.any()


def existing_children(children: Tensor, num_nodes: Tensor, draft_token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Every node's children and their tokens, -1 where a child is missing, cut off or was not drawn.

    Returns nodes and tokens, both int64 [batch, num_nodes + 1, max_children].
    """
    inside = (children > 0) & (children <= num_nodes[:, None, None])
    nodes = torch.where(inside, children, 0)  # [batch, num_nodes + 1, max_children]; 0 is safe to look up
    tokens = draft_token_ids.long().gather(1, nodes.flatten(1)).view_as(nodes)
    exists = inside & (tokens >= 0)
    return torch.where(exists, nodes, -1), torch.where(exists, tokens, -1)


def at_node(values: Tensor, node: Tensor) -> Tensor:
    """Each request's row at its node: values [batch, num_nodes + 1, ...], node [batch] -> [batch, ...]"""
    first_row = torch.arange(len(node), device=node.device) * values.shape[1]
    return values.flatten(0, 1).index_select(0, first_row + node)  # on CPU faster than values[rows, node]


def _verified(path: Tensor, draft_token_ids: Tensor, bonus: Tensor) -> Verified:
    """The accepted nodes' tokens, path int64 [batch, max_depth], with the bonus token [batch] behind them."""
    num_accepted = (path >= 0).sum(1)
    accepted = torch.where(path >= 0, draft_token_ids.long().gather(1, path.clamp(min=0)), -1)
    token_ids = torch.nn.functional.pad(accepted, (0, 1), value=-1)
    return Verified(token_ids.scatter(1, num_accepted[:, None], bonus.long()[:, None]), path, num_accepted)
