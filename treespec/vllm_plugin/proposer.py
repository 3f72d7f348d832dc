"""Drafting as the host sees it: what the draft has not seen, which tree each request gets, what came of it.

One catch-up pass over unseen tokens, then one pass a tree level. The draft's keys and values live in vLLM's
block pool in the same slots as the target's, node i of a tree in the slot i places behind its root. So prefix
caching and preemption need no manager of their own.
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
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from treespec.tree import TokenTree
from treespec.vllm_plugin.draft_model import DraftModel
from treespec.vllm_plugin.head import DraftHead
from treespec.vllm_plugin.levels import Draws, Group, LevelDrafter
from treespec.vllm_plugin.parallel import draft_config, draft_group
from treespec.vllm_plugin.plan import draft_plan
from treespec.vllm_plugin.sampling import request_uniforms
from treespec.vllm_plugin.timing import StepClock


@dataclass
class Draft:
    """One request's drafted nodes. An absent token (the draft's support was exhausted) is -1."""

    token_ids: list[int]
    last_slot: int  # the last node with a cache slot; a node behind it was run without leaving anything
    probs: Tensor | None = None  # float32 [num_inner, columns]; None where children are the likeliest


@dataclass
class Wanted:
    """What is to be drafted in one step: requests of the input batch, one a row."""

    index: np.ndarray  # int64 [batch]; rows of the input batch
    start: np.ndarray  # int64 [batch]; tokens whose draft keys and values are in the cache
    end: np.ndarray  # int64 [batch]; tokens there are, the root last; more than start
    trees: list[TokenTree | None]  # None: catch up only

    @property
    def common_tree(self) -> TokenTree | None:
        """The tree of all that are drafted for, if it is one."""
        trees = {tree for tree in self.trees if tree is not None}
        return trees.pop() if len(trees) == 1 else None

    @property
    def is_steady(self) -> bool:
        """Whether the draft lacks two tokens of each request at most, a whole accepted path's."""
        return bool((self.end - self.start <= 2).all() and (self.end >= 2).all())


Drafted = tuple[Group, dict[int, int]]  # a group, and its row of each request of `Wanted`


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
        tree_device = self.runner.tree_device
        for name in self.attn_layer_names:
            layer = self.vllm_config.compilation_config.static_forward_context[name]
            layer.attn_backend = tree_device.draft_backend
        self.head = DraftHead(
            self.model,
            Path(self.draft_model_config.model),
            self.draft_model_config.get_vocab_size(),
            self.speculative_config.draft_parallel_config.tensor_parallel_size,
        )
        self.levels = LevelDrafter(DraftModel(self, self.head, tree_device, self.clock))
        self.steady = tree_device.steady_drafter(self.levels, self.vllm_config)

    def dummy_run(self, num_tokens, use_cudagraphs=True, is_graph_capturing=False, slot_mappings=None):
        with self.in_draft_group(), set_forward_context(None, self.vllm_config, num_tokens=num_tokens):
            self.model(
                input_ids=self.input_ids[:num_tokens],
                positions=self.positions[:num_tokens],
                inputs_embeds=None,
            )

    def draft(self, wanted: Wanted) -> list[Draft | None]:
        """A draft per request, cut to what its allocated cache slots can hold."""
        table = self.runner.input_batch.block_table[0]
        rows = table.get_device_tensor(self.runner.input_batch.num_reqs)
        if len(wanted.index) != len(rows):
            rows = rows[self._on_device(wanted.index)]
        allocated = np.minimum(table.num_blocks_per_row[wanted.index] * table.block_size, self.max_model_len)
        drafted = self._draft_steady(table, rows, wanted, allocated) or self._draft_eagerly(
            table, rows, wanted, allocated
        )
        self.clock.num_draft_passes += max([1, *(len(group.plan.levels) for group, _ in drafted)])
        drafts: list[Draft | None] = [None] * len(wanted.index)
        for group, members in drafted:
            probs = None if group.draws is None else torch.cat(group.draws.probs, dim=1)
            token_ids = group.token_ids.tolist()
            for member, row in members.items():
                last_slot = int(allocated[member] - wanted.end[member])
                # The children of the last node with a slot can be drafted, too: they need none yet.
                num_nodes = min(group.plan.tree.num_nodes, last_slot + 1)
                drafts[member] = Draft(
                    token_ids[row][1 : num_nodes + 1], last_slot, None if probs is None else probs[row]
                )
        return drafts

    def _draft_steady(self, table, rows, wanted: Wanted, allocated) -> list[Drafted]:
        """One fixed shape from the unseen tokens to the last children; nothing where that does not fit.

        Requests that only catch up are drafted along, since the shape has a row for them; nobody looks.
        """
        tree = wanted.common_tree
        if self.steady is None or tree is None or not wanted.is_steady:
            return []
        metadata = self.runner.input_batch.sampling_metadata
        sampled = metadata if self.draws_children and not metadata.all_greedy else None
        if not self.steady.serves(tree, len(rows), rows.shape[1], sampled):
            return []
        roots = wanted.end - 1
        last_two = np.stack([roots - 1, roots], axis=1)
        token_ids = self.runner.input_batch.token_ids_cpu[wanted.index[:, None], last_two]
        slots = self._node_slots(table, wanted.index, roots - 1, tree.num_nodes + 1, allocated)
        draws = self._draws(wanted.index, wanted.trees) if self.draws_children else None
        group = self.steady.draft(tree, token_ids, roots, slots, rows, draws)
        return [(group, {member: member for member, own in enumerate(wanted.trees) if own is not None})]

    def _draft_eagerly(self, table, rows, wanted: Wanted, allocated) -> list[Drafted]:
        """Ragged catch-up, then all trees' levels side by side."""
        hidden, last = self._catch_up(table, rows, wanted)
        members: dict[TokenTree, list[int]] = {}
        for member, tree in enumerate(wanted.trees):
            if tree is not None:
                members.setdefault(tree, []).append(member)
        groups = []
        for tree, chosen in members.items():
            index, roots = wanted.index[chosen], wanted.end[chosen] - 1
            slots = self._node_slots(table, index, roots, tree.num_nodes, allocated[chosen])
            group = Group(
                plan=draft_plan(tree, self.device),
                roots=self._on_device(roots),
                slots=self._on_device(slots),
                block_table=rows if len(chosen) == len(rows) else rows[self._on_device(np.asarray(chosen))],
                max_root=int(roots.max()),
                draws=self._draws(index, [tree] * len(index)) if self.draws_children else None,
            )
            groups.append(group)
        if groups:
            order = self._on_device(np.concatenate([np.asarray(chosen) for chosen in members.values()]))
            self.levels.draft(groups, hidden[last[order]])
        rows_of = [{member: row for row, member in enumerate(chosen)} for chosen in members.values()]
        return list(zip(groups, rows_of, strict=True))

    def _draws(self, index: np.ndarray, trees: list[TokenTree | None]) -> Draws | None:
        """Random numbers for the requests that are drafted for; None if none of the batch samples."""
        metadata = self.runner.input_batch.sampling_metadata
        if metadata.all_greedy:
            return None
        requests = index.tolist()
        counts = [tree.num_nodes if tree else 0 for tree in trees]
        return Draws(
            metadata=metadata,
            request=self._on_device(index),
            uniforms=request_uniforms(metadata.generators, requests, counts, self.device),
        )

    def _catch_up(self, table, rows, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Run the draft over what it has not seen. Returns hidden states and each request's last row."""
        counts = wanted.end - wanted.start
        starts = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        place = np.repeat(wanted.index, counts)
        positions = np.arange(starts[-1]) + np.repeat(wanted.start - starts[:-1], counts)
        token_ids = self.runner.input_batch.token_ids_cpu[place, positions]
        starts_on_device = self._on_device(starts)
        hidden = self.levels.model.run_causal(
            self._on_device(token_ids),
            self._on_device(positions),
            self._on_device(cache_slots(table, place, positions)),
            starts=starts_on_device,
            seq_lens=self._on_device(wanted.end.astype(np.int32)),
            block_table=rows,
            max_query_len=int(counts.max()),
            max_seq_len=int(wanted.end.max()),
        )
        return hidden, (starts_on_device[1:] - 1).long()

    def _node_slots(self, table, index, first, num_behind: int, allocated) -> np.ndarray:
        """Slots of the positions `first` and the next `num_behind`, -1 where none is allocated."""
        positions = first[:, None] + np.arange(num_behind + 1)
        slots = cache_slots(table, index[:, None], np.minimum(positions, self.max_model_len - 1))
        slots[positions >= allocated[:, None]] = -1
        return slots

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def cache_slots(table, place: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Slots in the block pool of sequence positions. int64, the inputs' broadcast shape"""
    blocks = table.get_numpy_array()[place, positions // table.block_size]
    return blocks.astype(np.int64) * table.block_size + positions % table.block_size
