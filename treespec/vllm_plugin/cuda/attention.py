"""Tree attention on the GPU: vLLM's Triton kernel with a bias between the queries of one request.

`unified_attention(qq_bias=...)` adds bias[i, j] to the score of a request's query i and the key of its
query j, under the causal mask. In pre-order a node's ancestors come before it, so a bias of 0 for ancestors
and -inf for the rest is the tree's mask, and its top left corner is the mask of every tree that is cut
short. One kernel call takes one bias: a batch of several trees takes a call for each.

-inf is safe there: a row's first tile holds the sequence's first token, which every node sees, so the
running maximum is finite before a tile can be masked whole.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.attention.ops.triton_reshape_and_cache_flash import triton_reshape_and_cache_flash
from vllm.v1.attention.ops.triton_unified_attention import unified_attention

from treespec.tree import TokenTree
from treespec.vllm_plugin.attention import TreeQueries

# The kernel reads the bias for whole blocks of at most so many queries, past the last one too.
MAX_QUERIES_PER_BLOCK = 16


@lru_cache(maxsize=64)
def tree_bias(tree: TokenTree, device: torch.device) -> Tensor:
    """0 where a node sees a node, -inf elsewhere. float32 [num_nodes + 1 + spare rows, num_nodes + 1]"""
    size = len(tree.parents)
    bias = torch.zeros(size + MAX_QUERIES_PER_BLOCK, size)
    bias[:size].masked_fill_(~torch.from_numpy(tree.ancestor_mask), float("-inf"))
    return bias.to(device)


@dataclass(frozen=True)
class TreeCall:
    """One call of the kernel: the rows of one forward pass that attend along one tree.

    The kernel wants a request's queries in node order without gaps. Where the pass does not hold them so
    (a drafted level runs inner nodes only), they are spread over a buffer that has a place for every node up
    to the last; places of absent nodes hold anything, no row is affected by another.
    """

    bias: Tensor  # float32 [>= num_nodes + 1 + spare rows, num_nodes + 1]
    query_start_loc: Tensor  # int32 [batch + 1]
    seq_lens: Tensor  # int32 [batch]
    block_table: Tensor  # int32 [batch, max_num_blocks]
    max_seq_len: int
    max_query_len: int
    places: Tensor | None = None  # int64 [num_rows]; each row's place in the buffer, None: no buffer
    rows: Tensor | None = None  # int64 [num_rows]; rows of the query tensor, None: all in order
    num_places: int = 0


@dataclass(frozen=True)
class TreeRows:
    """What a built metadata carries as `tree`."""

    calls: tuple[TreeCall, ...]
    covers_all: bool  # no row of the pass attends causally


class TreeTritonBuilder(TritonAttentionMetadataBuilder):
    graph_bias: Tensor | None = None  # what captured graphs read; float32, shaped as tree_bias

    def attend_along(self, metadata: TritonAttentionMetadata, queries: TreeQueries) -> None:
        """Make a target pass attend along `queries` in its tree rows."""
        trees = dict.fromkeys(queries.trees)
        if queries.covers_all and len(trees) == 1:
            calls = (self._whole_batch(metadata, tree_bias(queries.trees[0], self.device)),)
        else:
            calls = tuple(spread(queries, tree, self.block_size) for tree in trees)
        metadata.tree = TreeRows(calls, queries.covers_all)

    def attend_level(self, metadata: TritonAttentionMetadata, queries: TreeQueries) -> None:
        """Make a draft pass attend along `queries`, which are all of its rows."""
        trees = dict.fromkeys(queries.trees)
        in_order = len(trees) == 1
        calls = tuple(spread(queries, tree, self.block_size, in_order) for tree in trees)
        metadata.tree = TreeRows(calls, covers_all=True)

    def attend_graph_tree(self, metadata: TritonAttentionMetadata, num_nodes: int) -> None:
        """Make a pass that is about to be captured attend along whichever tree `show` names later."""
        if self.graph_bias is None:
            self._shown = TokenTree.chain(num_nodes)
            self.graph_bias = tree_bias(self._shown, self.device).clone()
        metadata.tree = TreeRows((self._whole_batch(metadata, self.graph_bias),), covers_all=True)

    def show(self, tree: TokenTree) -> None:
        """Let captured graphs attend along `tree`, one of as many nodes as they were captured for."""
        if tree != self._shown:
            self.graph_bias.copy_(tree_bias(tree, self.device))
            self._shown = tree

    def _whole_batch(self, metadata: TritonAttentionMetadata, bias: Tensor) -> TreeCall:
        return TreeCall(
            bias=bias,
            query_start_loc=metadata.query_start_loc,
            seq_lens=metadata.seq_lens,
            block_table=metadata.block_table,
            max_seq_len=metadata.max_seq_len,
            max_query_len=metadata.max_query_len,
        )


def spread(queries: TreeQueries, tree: TokenTree, block_size: int, in_order: bool = False) -> TreeCall:
    """The call for the requests of `tree`, through a buffer. All of it is computed on the device.

    in_order: the rows are those of the query tensor, one after another, without padding.
    """
    rows, nodes, context_lens, table = queries.rows, queries.nodes, queries.context_lens, queries.block_table
    members = [index for index, own in enumerate(queries.trees) if own == tree]
    if len(members) < len(queries.trees):
        chosen = torch.tensor(members, device=rows.device)
        rows, nodes, context_lens, table = (each[chosen] for each in (rows, nodes, context_lens, table))
    if not in_order:  # padding then does twice what the request's first row does
        rows = torch.where(nodes >= 0, rows, rows[:, :1])
        nodes = torch.where(nodes >= 0, nodes, nodes[:, :1])
    query_lens = nodes.amax(dim=1) + 1  # up to the last node of the pass
    starts = pad(query_lens.cumsum(0), (1, 0))
    # A level may reach past the last block that a sequence can have; what is computed there is dropped.
    missing = -(-queries.max_kv_len // block_size) - table.shape[1]
    return TreeCall(
        bias=tree_bias(tree, rows.device),
        query_start_loc=starts.int(),
        seq_lens=(context_lens + query_lens).int(),
        block_table=pad(table, (0, missing)) if missing > 0 else table,
        max_seq_len=queries.max_kv_len,
        max_query_len=len(tree.parents),
        places=(starts[:-1, None] + nodes).flatten(),
        rows=None if in_order else rows.flatten(),
        num_places=len(members) * len(tree.parents),
    )


class DraftTritonBuilder(TreeTritonBuilder):
    """Reads head counts from the draft's config, where stock reads the target's for every layer."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        # A plain copy: `VllmConfig.replace` would settle the shared compilation config a second time.
        draft_config = copy(vllm_config)
        draft_config.model_config = vllm_config.speculative_config.draft_model_config
        draft_config.parallel_config = vllm_config.speculative_config.draft_parallel_config
        super().__init__(kv_cache_spec, layer_names, draft_config, device)


class TreeTritonImpl(TritonAttentionImpl):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.sliding_window != (-1, -1) or self.alibi_slopes is not None:
            raise ValueError(
                "treespec: sliding-window or ALiBi attention; expected full attention without, "
                "a tree's nodes lie in the cache at other distances than their positions"
            )

    def fused_output_quant_supported(self, quant_key) -> bool:
        return False

    def forward(
        self,
        layer,
        query,  # [num_tokens, num_heads, head_size]
        key,  # [num_tokens, num_kv_heads, head_size]
        value,
        kv_cache,  # [num_blocks, 2, block_size, num_kv_heads, head_size]
        attn_metadata,
        output=None,
        output_scale=None,
        output_block_scale=None,
    ):
        tree: TreeRows | None = getattr(attn_metadata, "tree", None)
        if tree is None or not tree.covers_all:  # causal rows; tree rows are overwritten below
            super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
            if tree is None:
                return output
        key_cache, value_cache = kv_cache.unbind(1)
        if tree.covers_all:
            triton_reshape_and_cache_flash(
                key,
                value,
                key_cache,
                value_cache,
                attn_metadata.slot_mapping,
                self.kv_cache_dtype,
                layer._k_scale,
                layer._v_scale,
            )
        num_tokens = attn_metadata.num_actual_tokens
        for call in tree.calls:
            self._attend(call, query[:num_tokens], key_cache, value_cache, output[:num_tokens])
        return output

    def _attend(self, call: TreeCall, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        if call.places is None:
            self._run(call, query, keys, values, output)
            return
        spread_query = query.new_empty(call.num_places, *query.shape[1:])
        spread_query.index_copy_(0, call.places, query if call.rows is None else query[call.rows])
        spread_output = torch.empty_like(spread_query)
        self._run(call, spread_query, keys, values, spread_output)
        if call.rows is None:
            torch.index_select(spread_output, 0, call.places, out=output)
        else:
            output[call.rows] = spread_output[call.places]

    def _run(self, call: TreeCall, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        unified_attention(
            q=query,
            k=keys,
            v=values,
            out=output,
            cu_seqlens_q=call.query_start_loc,
            max_seqlen_q=call.max_query_len,
            seqused_k=call.seq_lens,
            max_seqlen_k=call.max_seq_len,
            softmax_scale=self.scale,
            causal=True,
            window_size=self.sliding_window,
            block_table=call.block_table,
            softcap=self.logits_soft_cap,
            q_descale=None,
            k_descale=None,  # the cache is not quantised
            v_descale=None,
            sinks=self.sinks,
            qq_bias=call.bias,
        )


class TreeTritonBackend(TritonAttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "CUSTOM"  # the name in AttentionBackendEnum that it is registered under

    @staticmethod
    def get_impl_cls():
        return TreeTritonImpl

    @staticmethod
    def get_builder_cls():
        return TreeTritonBuilder


class DraftTritonBackend(TreeTritonBackend):
    """A class of its own, so that draft layers form an attention group of their own."""

    @staticmethod
    def get_builder_cls():
        return DraftTritonBuilder
