"""From a target pass over drafted trees to output tokens: which rule applies to which request.

Greedy requests follow the target's argmax. Sampling requests follow a sample of the target's distribution
where children were chosen as the likeliest, and go through the modified rejection rule where they were drawn
at random. What was not drafted for is vLLM's own sampler's, as if there were no speculation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput

from treespec.tree import TokenTree
from treespec.verify import (
    TargetProbs,
    Verified,
    at_node,
    verify_matching,
    verify_rejection,
    verify_sampling,
)
from treespec.vllm_plugin.attention import TreeQueries
from treespec.vllm_plugin.plan import draft_plan
from treespec.vllm_plugin.sampling import processed_probs, request_uniforms, stock_metadata
from treespec.vllm_plugin.state import DraftState


@dataclass
class Round:
    """The trees that one target pass verifies."""

    num_nodes: np.ndarray  # int64 [num_reqs]; scheduled nodes, 0: none
    states: list[DraftState]  # [num_reqs]
    first_row: np.ndarray  # int64 [num_reqs]; the root's row among the batch's tokens
    queries: TreeQueries | None  # the rows that do not attend causally
    verified: Verified | None = None

    @property
    def trees(self) -> list[TokenTree | None]:
        """The tree that each request's scheduled nodes are a prefix of. [num_reqs]"""
        return [
            state.tree if count else None for state, count in zip(self.states, self.num_nodes, strict=True)
        ]


class Verifier:
    def __init__(self, runner):
        self._runner = runner
        self._spare = torch.Generator(device=runner.device)  # for rows whose sample nobody uses, or no seed
        self._spare.manual_seed(runner.model_config.seed)  # the same on every rank

    def verify(self, logits: Tensor, round: Round, last_rows: Tensor) -> tuple[Verified, Tensor]:
        """logits: [sum of nodes + 1 over requests, vocab], requests in batch order.

        Returns the verification and the row of `logits` of every node, int64 [num_reqs, num_nodes + 1].
        """
        metadata = self._runner.input_batch.sampling_metadata
        width = int(round.num_nodes.max()) + 1
        counts = round.num_nodes + 1
        starts = np.cumsum(counts) - counts
        offsets = np.minimum(np.arange(width), round.num_nodes[:, None])  # padding repeats the last node
        rows = self._to_device(starts[:, None] + offsets)
        drafted = self._draft_token_ids(round, offsets)
        num_nodes = self._to_device(round.num_nodes)
        trees = round.trees
        children = self._tables(trees, "children")[:, :width]  # a draft may be cut short
        max_depth = max(tree.depth for tree in trees if tree)
        if metadata.all_greedy:
            chosen = logits.max(dim=-1).indices[rows]  # argmax, which on bfloat16 takes six times as long
            verified = verify_matching(drafted, children, num_nodes, chosen, max_depth)
        else:
            probs = self._target_probs(logits, rows)
            if self._runner.drafter.draws_children:
                verified = self._reject(round, drafted, children, num_nodes, probs, max_depth)
            else:
                uniforms = self._uniforms(round, [int(count) for count in counts])
                verified = verify_sampling(drafted, children, num_nodes, probs, uniforms, max_depth)
        self._take_undrafted(round, logits[last_rows], verified)
        return verified, rows

    def _target_probs(self, logits: Tensor, rows: Tensor) -> TargetProbs:
        """logits [sum of nodes + 1 over requests, vocab], rows int64 [num_reqs, num_nodes + 1]"""
        metadata = self._runner.input_batch.sampling_metadata
        request = torch.arange(len(rows), device=rows.device)
        return lambda node: processed_probs(logits[at_node(rows, node)], metadata, request)

    def _reject(self, round, drafted, children, num_nodes, target_probs, max_depth) -> Verified:
        """The modified rejection rule."""
        trees = round.trees
        num_tests = [tree.depth * tree.max_children if tree else 0 for tree in trees]
        random = self._uniforms(round, [count + 1 for count in num_tests])
        tests = random.new_zeros(len(trees), max_depth, children.shape[2])
        for own, given, tree in zip(tests, random, trees, strict=True):
            if tree:  # a request's own tree decides which number serves which test
                size = tree.depth, tree.max_children
                own[: size[0], : size[1]] = given[: size[0] * size[1]].view(size)
        last = self._to_device(np.asarray(num_tests))
        return verify_rejection(
            drafted,
            children,
            num_nodes,
            target_probs,
            self._draft_probs(round),
            self._tables(trees, "inner_row")[:, : drafted.shape[1]],
            tests,
            random.gather(1, last[:, None]).squeeze(1),
            max_depth,
            is_greedy=self._to_device(np.asarray([state.probs is None for state in round.states])),
            children_per_level=_widest(trees),
        )

    def _draft_token_ids(self, round: Round, offsets: np.ndarray) -> Tensor:
        """Tokens of every request's nodes, -1 where absent. int64 [num_reqs, num_nodes + 1]"""
        token_ids = self._runner.input_ids.gpu[self._to_device(round.first_row[:, None] + offsets)].long()
        for row, state in enumerate(round.states):
            absent = [node for node in state.absent if node <= round.num_nodes[row]]
            if absent:
                token_ids[row, absent] = -1
        return token_ids

    def _draft_probs(self, round: Round) -> Tensor:
        """What every request's children were drawn from. float32 [num_reqs, num_inner, vocab]"""
        known = [state.probs for state in round.states if state.probs is not None]
        columns = known[0].shape[1]
        size = max(len(probs) for probs in known)
        stacked = known[0].new_zeros(len(round.states), size, columns)
        for row, state in zip(stacked, round.states, strict=True):
            if state.probs is not None:
                row[: len(state.probs)] = state.probs
        return self._runner.drafter.head.to_vocab(stacked)

    def _tables(self, trees: list[TokenTree | None], name: str) -> Tensor:
        """One of the plans' tables for every request, padded with -1; one row if all trees are the same."""
        device = self._runner.device
        unique = {tree for tree in trees if tree}
        if len(unique) == 1:
            return getattr(draft_plan(unique.pop(), device), name)[None]
        tables = [getattr(draft_plan(tree, device), name) if tree else None for tree in trees]
        shape = np.max([table.shape for table in tables if table is not None], axis=0).tolist()
        stacked = torch.full((len(trees), *shape), -1, dtype=torch.int64, device=device)
        for row, table in zip(stacked, tables, strict=True):
            if table is not None:
                row[tuple(slice(size) for size in table.shape)] = table
        return stacked

    def _uniforms(self, round: Round, counts: list[int]) -> Tensor:
        """Random numbers for drafted requests from their generators. float64 [num_reqs, max(counts)]"""
        generators = self._runner.input_batch.sampling_metadata.generators
        drafted = {i: g for i, g in generators.items() if i < len(counts) and round.num_nodes[i]}
        return request_uniforms(drafted, list(range(len(counts))), counts, self._runner.device)

    def _take_undrafted(self, round: Round, last_logits: Tensor, verified: Verified) -> None:
        """Let vLLM sample for requests that were not drafted for. last_logits: [num_reqs, vocab]"""
        undrafted = np.flatnonzero(round.num_nodes == 0)
        if all(round.states[i].is_plain for i in undrafted):
            return
        stock = self.sample_stock(last_logits, among=set(undrafted.tolist()), max_num_logprobs=None)
        index = self._to_device(undrafted)
        verified.token_ids[index, 0] = stock.sampled_token_ids[index, 0].long()

    def sample_stock(self, logits: Tensor, among: set[int] | None = None, **changes) -> SamplerOutput:
        """vLLM's own sampler, with every seed respected. logits: [num_reqs, vocab]"""
        metadata = replace(self._runner.input_batch.sampling_metadata, **changes)
        return self._runner.sampler(
            logits=logits, sampling_metadata=stock_metadata(metadata, len(logits), self._spare, among)
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._runner.device, non_blocking=True)


def _widest(trees: list[TokenTree | None]) -> list[int]:
    """Most children of a node, level by level, over all trees. [max_depth]"""
    widest: list[int] = []
    for tree in {tree for tree in trees if tree}:
        for depth, nodes in enumerate(tree.levels()[:-1]):
            most = max(tree.num_children[node] for node in nodes)
            if depth == len(widest):
                widest.append(most)
            widest[depth] = max(widest[depth], most)
    return widest
