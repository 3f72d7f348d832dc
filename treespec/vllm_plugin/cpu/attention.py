"""Tree attention on CPU: vLLM's C++ kernel for causal rows, one masked flash call for all tree rows.

The cache's true layout for the isa "vec" and "vec16" differs from its declared shape: keys lie transposed
inside a block, [kv_heads, head_size, block_size], values as declared, [kv_heads, block_size, head_size].
The "amx" isa packs keys in pairs, so "vec" is chosen where vLLM would offer it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.spec_decode.draft_model import create_vllm_config_for_draft_model

from treespec.vllm_plugin.attention import TreeQueries


@dataclass(frozen=True)
class GatheredTree:
    """`TreeQueries` made ready once a step for all layers of one shape."""

    rows: Tensor  # int64 [batch * width]
    kept: Tensor | None  # int64; which of those rows are real, None: all
    targets: Tensor  # int64; the query rows the kept results go to
    block_ids: Tensor  # int64 [batch * num_blocks]
    bias: Tensor  # [batch, 1, group * width, num_kv]; 0 or -inf, in the queries' dtype
    batch: int
    covers_all: bool


class TreeAttentionBuilder(CPUAttentionMetadataBuilder):
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if self.isa == "amx":
            self.isa = "vec"

    def build_tree(self, metadata: CPUAttentionMetadata, queries: TreeQueries) -> None:
        """Make `metadata` attend along `queries`."""
        num_blocks = min(-(-queries.max_kv_len // self.block_size), queries.block_table.shape[1])
        visible = queries.visible(num_blocks * self.block_size)  # [batch, width, num_kv]
        bias = torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(~visible, float("-inf"))
        group = self.num_heads // self.num_kv_heads
        rows = queries.rows.flatten()
        real = queries.nodes.flatten() >= 0
        kept = None if bool(real.all()) else real.nonzero().squeeze(1)
        metadata.tree = GatheredTree(
            rows=rows,
            kept=kept,
            targets=rows if kept is None else rows[kept],
            block_ids=queries.block_table[:, :num_blocks].flatten().long(),
            bias=bias.repeat(1, group, 1)[:, None],
            batch=len(queries.rows),
            covers_all=queries.covers_all,
        )

    def build_all_tree(self, common, queries: TreeQueries) -> CPUAttentionMetadata:
        """Metadata of a pass that has tree rows only, without the causal kernel's schedule."""
        metadata = CPUAttentionMetadata(
            isa=self.isa,
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
        )
        self.build_tree(metadata, queries)
        return metadata


class DraftAttentionBuilder(TreeAttentionBuilder):
    """Reads head counts from the draft's config, where stock reads the target's for every layer."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        draft_config = create_vllm_config_for_draft_model(vllm_config)
        super().__init__(kv_cache_spec, layer_names, draft_config, device)


class TreeAttentionImpl(CPUAttentionBackendImpl):
    def forward(
        self,
        layer,
        query,  # [num_tokens, num_heads, head_size]
        key,  # [num_tokens, num_kv_heads, head_size]
        value,
        kv_cache,  # [2, num_blocks, num_kv_heads, block_size, head_size]
        attn_metadata,
        output=None,
        output_scale=None,
        output_block_scale=None,
    ):
        tree: GatheredTree | None = getattr(attn_metadata, "tree", None)
        if tree is None or not tree.covers_all:
            output = super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
            if tree is None:
                return output
        else:
            ops.cpu_attn_reshape_and_cache(
                key, value, kv_cache[0], kv_cache[1], attn_metadata.slot_mapping, attn_metadata.isa
            )
        self._attend_tree(query, kv_cache, tree, output)
        return output

    def _attend_tree(self, query: Tensor, kv_cache: Tensor, tree: GatheredTree, output: Tensor) -> None:
        _, _, kv_heads, block_size, head_size = kv_cache.shape
        batch, group = tree.batch, self.num_queries_per_kv
        gathered = kv_cache[:, tree.block_ids]  # [2, batch * num_blocks, ...]
        keys = gathered[0].view(batch, -1, kv_heads, head_size, block_size).permute(0, 2, 1, 4, 3)
        values = gathered[1].view(batch, -1, kv_heads, block_size, head_size).transpose(1, 2)
        queries = query[tree.rows].view(batch, -1, kv_heads, group, head_size).permute(0, 2, 3, 1, 4)
        attended = scaled_dot_product_attention(
            queries.reshape(batch, kv_heads, -1, head_size),  # [batch, kv_heads, group * width, head_size]
            keys.reshape(batch, kv_heads, -1, head_size),  # [batch, kv_heads, num_kv, head_size]
            values.reshape(batch, kv_heads, -1, head_size),
            attn_mask=tree.bias,
            scale=self.scale,
        )
        attended = attended.view(batch, kv_heads, group, -1, head_size).permute(0, 3, 1, 2, 4)
        attended = attended.reshape(-1, kv_heads * group, head_size)  # [batch * width, num_heads, head_size]
        output.view(-1, kv_heads * group, head_size)[tree.targets] = (
            attended if tree.kept is None else attended[tree.kept]
        )


class TreeAttentionBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls():
        return TreeAttentionImpl

    @staticmethod
    def get_builder_cls():
        return TreeAttentionBuilder


class DraftAttentionBackend(TreeAttentionBackend):
    """A class of its own, so that draft layers form an attention group of their own."""

    @staticmethod
    def get_builder_cls():
        return DraftAttentionBuilder
