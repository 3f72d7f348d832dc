"""Drafting: one catch-up pass over what the draft has not seen, then one pass a tree level.

The draft's keys and values live in vLLM's block pool in the same slots as the target's, node i of a tree
in the slot i places behind its root. So prefix caching and preemption need no manager of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vllm.attention.layer import Attention
from vllm.compilation.backends import set_model_tag
from vllm.config import get_layers_from_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader import get_model
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from treespec.drawing import draw_children
from treespec.tree import TokenTree
from treespec.vllm_plugin.attention import TreeQueries
from treespec.vllm_plugin.head import DraftHead
from treespec.vllm_plugin.parallel import draft_config, draft_group
from treespec.vllm_plugin.plan import DraftPlan, Level, draft_plan
from treespec.vllm_plugin.sampling import greedy_requests, processed_probs, request_uniforms
from treespec.vllm_plugin.timing import StepClock


class Group:
    """Requests of one batch that are drafted along one tree."""

    def __init__(self, plan: DraftPlan, members: list[int], roots: np.ndarray, slots: Tensor, table: Tensor):
        self.plan = plan
        self.draws: Draws | None = None
        self.members = members  # places in the batch
        self.max_root = int(roots.max())
        self.roots = torch.from_numpy(roots).to(slots.device)  # int64 [batch]
        self.slots = slots  # int64 [batch, num_nodes + 1]; cache slot of each node, -1: none
        self.block_table = table  # int32 [batch, max_num_blocks]
        self.token_ids = torch.zeros(slots.shape, dtype=torch.int64, device=slots.device)

    def level(self, depth: int) -> Level | None:
        return self.plan.levels[depth] if depth < len(self.plan.levels) else None


@dataclass
class Draws:
    """What a group needs to draw its children at random, and the distributions they were drawn from."""

    request: Tensor  # int64 [batch]; rows of the input batch
    uniforms: Tensor  # float64 [batch, num_nodes]
    probs: list[Tensor]  # a level: float32 [batch, num_inner, columns of the draft's head]


@dataclass
class Draft:
    """One request's drafted nodes. An absent token (the draft's support was exhausted) is -1."""

    token_ids: list[int]
    last_slot: int  # the last node with a cache slot; a node behind it was run without leaving anything
    probs: Tensor | None = None  # float32 [num_inner, columns]; None where children are the likeliest


class TreeProposer(DraftModelProposer):
    """vLLM's draft-model proposer with the drafting replaced; loading, buffers and checks are stock's."""

    clock: StepClock

    def __init__(self, vllm_config, device, runner=None):
        super().__init__(vllm_config, device, runner)
        self.tree = TokenTree.from_paths(self.tree_choices)
        options = (vllm_config.additional_config or {}).get("treespec", {})
        self.draws_children = options.get("draft_sampling") == "probabilistic"

    def _raise_if_draft_tp_mismatch(self):
        """Stock refuses what `load_model` below arranges for."""

    def load_model(self, target_model) -> None:
        self.in_draft_group = draft_group(self.vllm_config)
        of_target = set(get_layers_from_vllm_config(self.vllm_config, Attention))
        with self.in_draft_group(), set_model_tag("draft_model"):
            self.model = get_model(vllm_config=draft_config(self.vllm_config), prefix="draft_model")
        layers = get_layers_from_vllm_config(self.vllm_config, Attention)
        self.attn_layer_names = [name for name in layers if name not in of_target]
        for name in self.attn_layer_names:
            layer = self.vllm_config.compilation_config.static_forward_context[name]
            layer.attn_backend = self.runner.tree_device.draft_backend
        self.head = DraftHead(
            self.model,
            Path(self.draft_model_config.model),
            self.draft_model_config.get_vocab_size(),
            self.speculative_config.draft_parallel_config.tensor_parallel_size,
        )

    def dummy_run(self, num_tokens, use_cudagraphs=True, is_graph_capturing=False, slot_mappings=None):
        with self.in_draft_group(), set_forward_context(None, self.vllm_config, num_tokens=num_tokens):
            self.model(
                input_ids=self.input_ids[:num_tokens],
                positions=self.positions[:num_tokens],
                inputs_embeds=None,
            )

    def draft(
        self,
        index: np.ndarray,  # int64 [batch]; rows of the input batch
        start: np.ndarray,  # int64 [batch]; tokens whose draft keys and values are in the cache
        end: np.ndarray,  # int64 [batch]; tokens there are, the root last; more than start
        trees: list[TokenTree | None],  # None: catch up only
    ) -> list[Draft | None]:
        """A draft per request, cut to what its allocated cache slots can hold."""
        table = self.runner.input_batch.block_table[0]
        rows = table.get_device_tensor(self.runner.input_batch.num_reqs)
        if len(index) != len(rows):
            rows = rows[torch.from_numpy(index).to(self.device)]
        allocated = np.minimum(table.num_blocks_per_row[index] * table.block_size, self.max_model_len)
        hidden, last = self._catch_up(table, rows, index, start, end)
        groups = self._groups(table, rows, index, end - 1, allocated, trees)
        drafts: list[Draft | None] = [None] * len(index)
        if not groups:
            return drafts
        if self.draws_children:
            self._prepare_draws(groups, index)
        self._draft_levels(groups, hidden, last)
        for group in groups:
            probs = None if group.draws is None else torch.cat(group.draws.probs, dim=1)
            for row, (member, token_ids) in enumerate(
                zip(group.members, group.token_ids.tolist(), strict=True)
            ):
                last_slot = int(allocated[member] - end[member])
                # The children of the last node with a slot can be drafted, too: they need none yet.
                num_nodes = min(group.plan.tree.num_nodes, last_slot + 1)
                drafts[member] = Draft(
                    token_ids[1 : num_nodes + 1], last_slot, None if probs is None else probs[row]
                )
        return drafts

    def _prepare_draws(self, groups: list[Group], index: np.ndarray) -> None:
        """Give every group with a sampling request its random numbers."""
        metadata = self.runner.input_batch.sampling_metadata
        if metadata.all_greedy:
            return
        for group in groups:
            requests = index[group.members].tolist()
            counts = [group.plan.tree.num_nodes] * len(requests)
            group.draws = Draws(
                request=torch.tensor(requests, device=self.device),
                uniforms=request_uniforms(metadata.generators, requests, counts, self.device),
                probs=[],
            )

    def _catch_up(self, table, rows, index, start, end) -> tuple[Tensor, Tensor]:
        """Run the draft over what it has not seen. Returns hidden states and each request's last row."""
        counts = end - start
        starts = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        total = int(starts[-1])
        place = np.repeat(index, counts)
        positions = np.arange(total) + np.repeat(start - starts[:-1], counts)
        token_ids = self.runner.input_batch.token_ids_cpu[place, positions]
        slots = cache_slots(table, place, positions)
        query_start_loc = torch.from_numpy(starts)
        seq_lens = torch.from_numpy(end.astype(np.int32))
        common = self._common_metadata(
            query_start_loc, seq_lens, int(counts.max()), int(end.max()), rows, self._on_device(slots)
        )
        builder = self._get_attention_metadata_builder()
        metadata = builder.build(common_prefix_len=0, common_attn_metadata=common)
        hidden = self._forward(self._on_device(token_ids), self._on_device(positions), metadata, common)
        return hidden, (common.query_start_loc[1:] - 1).long()

    def _groups(self, table, rows, index, roots, allocated, trees) -> list[Group]:
        members: dict[TokenTree, list[int]] = {}
        for member, tree in enumerate(trees):
            if tree is not None:
                members.setdefault(tree, []).append(member)
        groups = []
        for tree, chosen in members.items():
            positions = roots[chosen, None] + np.arange(tree.num_nodes + 1)
            slots = cache_slots(table, index[chosen, None], np.minimum(positions, self.max_model_len - 1))
            slots[positions >= allocated[chosen, None]] = -1
            block_table = rows if len(chosen) == len(rows) else rows[torch.tensor(chosen, device=self.device)]
            plan = draft_plan(tree, self.device)
            groups.append(Group(plan, chosen, roots[chosen], self._on_device(slots), block_table))
        return groups

    def _draft_levels(self, groups: list[Group], hidden: Tensor, last: Tensor) -> None:
        """Fill every group's `token_ids`, level by level."""
        roots = [last[torch.tensor(group.members, device=self.device)] for group in groups]
        hidden = hidden[torch.cat(roots)]
        depth = 0
        while active := [group for group in groups if group.level(depth)]:
            if depth > 0:
                hidden = self._forward_level(active, depth)
            started = self.clock.start()
            logits = self.head.logits(hidden)  # [sum of batch * num_inner, columns]
            started = self.clock.stop("draft_forward", started)
            sizes = [len(group.members) * len(group.level(depth).inner) for group in active]
            for group, rows in zip(active, logits.split(sizes), strict=True):
                level = group.level(depth)
                columns = best_columns(rows, level.max_children)
                if group.draws is not None:
                    columns = self._draw(group, level, rows, columns)
                tokens = self.head.to_tokens(columns).view(len(group.members), -1, level.max_children)
                group.token_ids[:, level.children] = tokens[:, level.parent, level.rank]
            self.clock.stop("draft_choose", started)
            depth += 1

    def _draw(self, group: Group, level: Level, logits: Tensor, best: Tensor) -> Tensor:
        """Children drawn without replacement; greedy requests keep the likeliest, `best`.

        logits [batch * num_inner, columns], best int64 [batch * num_inner, max_children] -> as best
        """
        draws, batch, num_inner = group.draws, len(group.members), len(level.inner)
        metadata = self.runner.input_batch.sampling_metadata
        request = draws.request.repeat_interleave(num_inner)
        probs = processed_probs(logits, metadata, request)
        draws.probs.append(probs.view(batch, num_inner, -1))
        uniforms = draws.uniforms.new_zeros(batch, num_inner, level.max_children)
        uniforms[:, level.parent, level.rank] = draws.uniforms[:, level.children - 1]
        drawn = draw_children(probs, uniforms.flatten(0, 1))
        if metadata.all_random:
            return drawn
        is_greedy = greedy_requests(metadata, self.runner.input_batch.num_reqs, self.device)
        return torch.where(is_greedy[request][:, None], best, drawn)

    def _forward_level(self, groups: list[Group], depth: int) -> Tensor:
        """Run all groups' inner nodes of one depth. Returns hidden states, group by group."""
        inner = [group.level(depth).inner for group in groups]
        token_ids = [
            group.token_ids[:, nodes].clamp(min=0).flatten()  # an absent token is run as any other, unused
            for group, nodes in zip(groups, inner, strict=True)
        ]
        slots = [group.slots[:, nodes].flatten() for group, nodes in zip(groups, inner, strict=True)]
        positions = [
            (group.roots + depth).clamp(max=self.max_model_len - 1).repeat_interleave(len(nodes))
            for group, nodes in zip(groups, inner, strict=True)
        ]
        builder = self._get_attention_metadata_builder()
        block_table = (
            groups[0].block_table if len(groups) == 1 else torch.cat([g.block_table for g in groups])
        )
        roots = groups[0].roots if len(groups) == 1 else torch.cat([group.roots for group in groups])
        max_root = max(group.max_root for group in groups)
        slot_mapping = torch.cat(slots)
        if all(group.plan.tree.is_chain for group in groups):
            lens = (roots + depth + 1).clamp(max=self.max_model_len).int()
            query_start_loc = torch.arange(len(lens) + 1, dtype=torch.int32)
            common = self._common_metadata(
                query_start_loc, lens, 1, max_root + depth + 1, block_table, slot_mapping
            )
            metadata = builder.build(common_prefix_len=0, common_attn_metadata=common)
        else:
            last = max(group.level(depth).last_inner for group in groups)
            queries = level_queries(groups, inner, roots, block_table, max_root + last + 1)
            common = self._common_metadata(
                torch.tensor([0, len(slot_mapping)], dtype=torch.int32),
                roots[:1].int(),
                len(slot_mapping),
                queries.max_kv_len,
                block_table,
                slot_mapping,
            )
            metadata = self.runner.tree_device.tree_only(builder, common, queries)
        return self._forward(torch.cat(token_ids), torch.cat(positions), metadata, common)

    def _common_metadata(self, query_start_loc, seq_lens, max_query_len, max_seq_len, block_table, slots):
        return CommonAttentionMetadata(
            query_start_loc=query_start_loc.to(self.device, non_blocking=True),
            query_start_loc_cpu=query_start_loc,
            seq_lens=seq_lens.to(self.device, non_blocking=True),
            num_reqs=len(query_start_loc) - 1,
            num_actual_tokens=len(slots),
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            block_table_tensor=block_table,
            slot_mapping=slots,
            causal=True,
        )

    def _forward(self, token_ids: Tensor, positions: Tensor, metadata, common) -> Tensor:
        """Hidden states of the draft. [num_tokens, hidden_size]"""
        started = self.clock.start()
        self.clock.num_draft_passes += 1
        num_tokens = len(token_ids)
        self.input_ids[:num_tokens] = token_ids
        self.positions[:num_tokens] = positions
        with set_forward_context(
            dict.fromkeys(self.attn_layer_names, metadata),
            self.vllm_config,
            num_tokens=num_tokens,
            slot_mapping=dict.fromkeys(self.attn_layer_names, common.slot_mapping),
        ):
            hidden = self.model(
                input_ids=self.input_ids[:num_tokens],
                positions=self.positions[:num_tokens],
                inputs_embeds=None,
            )
        self.clock.stop("draft_forward", started)
        return hidden

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def best_columns(logits: Tensor, count: int) -> Tensor:
    """The likeliest columns, best first. logits [rows, columns] -> int64 [rows, count]"""
    if count == 1:  # reads the row once where topk sorts
        return logits.max(dim=-1, keepdim=True).indices
    return logits.topk(count, dim=-1).indices


def cache_slots(table, place: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Slots in the block pool of sequence positions. int64, the inputs' broadcast shape"""
    blocks = table.get_numpy_array()[place, positions // table.block_size]
    return blocks.astype(np.int64) * table.block_size + positions % table.block_size


def level_queries(
    groups: list[Group], inner: list[Tensor], roots: Tensor, block_table: Tensor, max_kv_len: int
) -> TreeQueries:
    """One level's inner nodes as tree rows, padded to the widest group."""
    device = roots.device
    width = max(len(nodes) for nodes in inner)
    rows, nodes, first = [], [], 0
    for group, level in zip(groups, inner, strict=True):
        batch, count = len(group.members), len(level)
        own = torch.arange(batch * count, device=device).view(batch, count) + first
        rows.append(torch.nn.functional.pad(own, (0, width - count), value=first))
        nodes.append(torch.nn.functional.pad(level.expand(batch, -1), (0, width - count), value=-1))
        first += batch * count
    return TreeQueries(
        rows=torch.cat(rows),
        nodes=torch.cat(nodes),
        context_lens=roots,
        trees=tuple(group.plan.tree for group in groups for _ in group.members),
        block_table=block_table,
        max_kv_len=max_kv_len,
        covers_all=True,
    )
