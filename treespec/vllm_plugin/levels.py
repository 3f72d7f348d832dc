"""Drafting below the root: a pass of the draft a tree level, its children chosen, and so on downwards.

All of it is work of the device that the host describes once: shapes follow from the trees and the batch, no
tensor is looked at. So the same code runs eagerly or is captured as one CUDA graph (`cuda.graphs`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from vllm.v1.sample.metadata import SamplingMetadata

from treespec.drawing import draw_children
from treespec.vllm_plugin.attention import TreeQueries
from treespec.vllm_plugin.draft_model import DraftModel
from treespec.vllm_plugin.plan import DraftPlan, Level
from treespec.vllm_plugin.sampling import greedy_requests, processed_probs


@dataclass
class Draws:
    """What a group needs to draw its children at random, and the distributions they were drawn from."""

    metadata: SamplingMetadata  # temperature, top-k, top-p of the batch
    request: Tensor  # int64 [batch]; the requests' rows in `metadata`
    uniforms: Tensor  # float64 [batch, num_nodes]
    probs: list[Tensor] = field(default_factory=list)  # a level: float32 [batch, num_inner, columns]


@dataclass
class Group:
    """Requests of one batch that are drafted along one tree."""

    plan: DraftPlan
    roots: Tensor  # int64 [batch]; the root's position in the sequence
    slots: Tensor  # int64 [batch, num_nodes + 1]; cache slot of each node, -1: none
    block_table: Tensor  # int32 [batch, max_num_blocks]
    max_root: int
    draws: Draws | None = None
    token_ids: Tensor | None = None  # int64 [batch, num_nodes + 1], the result; column 0 is unused

    def level(self, depth: int) -> Level | None:
        return self.plan.levels[depth] if depth < len(self.plan.levels) else None


class LevelDrafter:
    def __init__(self, model: DraftModel):
        self.model = model
        self._clock = model.clock

    def draft_steady(self, group: Group, token_ids: Tensor, slot_before: Tensor) -> None:
        """Draft a group of which the draft may have missed the two last tokens; runs both.

        token_ids int64 [batch, 2], the token before the root and the root's; slot_before int64 [batch]. Of
        fixed shape whatever was accepted, for the price of one row: what was there is computed once more.
        """
        batch = len(token_ids)
        hidden = self.model.run_causal(
            token_ids.flatten(),
            torch.stack([group.roots - 1, group.roots], dim=1).flatten(),
            torch.stack([slot_before, group.slots[:, 0]], dim=1).flatten(),
            starts=self.model.starts(batch) * 2,
            seq_lens=(group.roots + 1).int(),
            block_table=group.block_table,
            max_query_len=2,
            max_seq_len=group.max_root + 1,
        )
        self.draft([group], hidden[1::2])

    def draft(self, groups: list[Group], hidden: Tensor) -> None:
        """Fill every group's `token_ids`, level by level.

        hidden [sum of batch, hidden_size]: the draft's states at the roots, group by group.
        """
        for group in groups:
            group.token_ids = torch.zeros_like(group.slots)
        depth = 0
        while active := [group for group in groups if group.level(depth)]:
            if depth > 0:
                hidden = self._run_level(active, depth)
            started = self._clock.start()
            logits = self.model.logits(hidden)  # [sum of batch * num_inner, columns]
            started = self._clock.stop("draft_forward", started)
            sizes = [len(group.slots) * len(group.level(depth).inner) for group in active]
            for group, rows in zip(active, logits.split(sizes), strict=True):
                level = group.level(depth)
                columns = best_columns(rows, level.max_children)
                if group.draws is not None:
                    columns = self._draw(group, level, rows, columns)
                tokens = self.model.head.to_tokens(columns).view(len(group.slots), -1, level.max_children)
                group.token_ids[:, level.children] = tokens[:, level.parent, level.rank]
            self._clock.stop("draft_choose", started)
            depth += 1

    def _draw(self, group: Group, level: Level, logits: Tensor, best: Tensor) -> Tensor:
        """Children drawn without replacement; greedy requests keep the likeliest, `best`.

        logits [batch * num_inner, columns], best int64 [batch * num_inner, max_children] -> as best
        """
        draws, batch, num_inner = group.draws, len(group.slots), len(level.inner)
        metadata = draws.metadata
        request = draws.request.repeat_interleave(num_inner)
        probs = processed_probs(logits, metadata, request)
        draws.probs.append(probs.view(batch, num_inner, -1))
        uniforms = draws.uniforms.new_zeros(batch, num_inner, level.max_children)
        uniforms[:, level.parent, level.rank] = draws.uniforms[:, level.children - 1]
        drawn = draw_children(probs, uniforms.flatten(0, 1))
        if metadata.all_random:
            return drawn
        is_greedy = greedy_requests(metadata)
        return torch.where(is_greedy[request][:, None], best, drawn)

    def _run_level(self, groups: list[Group], depth: int) -> Tensor:
        """Run all groups' inner nodes of one depth. Returns hidden states, group by group."""
        longest = self.model.max_model_len
        inner = [group.level(depth).inner for group in groups]
        token_ids = [
            group.token_ids[:, nodes].clamp(min=0).flatten()  # an absent token is run as any other, unused
            for group, nodes in zip(groups, inner, strict=True)
        ]
        slots = [group.slots[:, nodes].flatten() for group, nodes in zip(groups, inner, strict=True)]
        positions = [
            (group.roots + depth).clamp(max=longest - 1).repeat_interleave(len(nodes))
            for group, nodes in zip(groups, inner, strict=True)
        ]
        rows = torch.cat(token_ids), torch.cat(positions), torch.cat(slots)
        block_table = (
            groups[0].block_table if len(groups) == 1 else torch.cat([g.block_table for g in groups])
        )
        roots = groups[0].roots if len(groups) == 1 else torch.cat([group.roots for group in groups])
        max_root = max(group.max_root for group in groups)
        if all(group.plan.tree.is_chain for group in groups):
            return self.model.run_causal(
                *rows,
                starts=self.model.starts(len(roots)),
                seq_lens=(roots + depth + 1).clamp(max=longest).int(),
                block_table=block_table,
                max_query_len=1,
                max_seq_len=max_root + depth + 1,
            )
        last = max(group.level(depth).last_inner for group in groups)
        queries = level_queries(groups, inner, roots, block_table, max_root + last + 1)
        return self.model.run_along(*rows, queries)


def best_columns(logits: Tensor, count: int) -> Tensor:
    """The likeliest columns, best first. logits [rows, columns] -> int64 [rows, count]"""
    if count == 1:  # reads the row once where topk sorts
        return logits.max(dim=-1, keepdim=True).indices
    return logits.topk(count, dim=-1).indices


def level_queries(
    groups: list[Group], inner: list[Tensor], roots: Tensor, block_table: Tensor, max_kv_len: int
) -> TreeQueries:
    """One level's inner nodes as tree rows, padded to the widest group."""
    device = roots.device
    width = max(len(nodes) for nodes in inner)
    rows, nodes, first = [], [], 0
    for group, level in zip(groups, inner, strict=True):
        batch, count = len(group.slots), len(level)
        own = torch.arange(batch * count, device=device).view(batch, count) + first
        rows.append(torch.nn.functional.pad(own, (0, width - count), value=first))
        nodes.append(torch.nn.functional.pad(level.expand(batch, -1), (0, width - count), value=-1))
        first += batch * count
    return TreeQueries(
        rows=torch.cat(rows),
        nodes=torch.cat(nodes),
        context_lens=roots,
        trees=tuple(group.plan.tree for group in groups for _ in range(len(group.slots))),
        block_table=block_table,
        max_kv_len=max_kv_len,
        covers_all=True,
    )
