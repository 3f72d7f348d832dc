"""One pass of the draft model through vLLM's attention and cache, and its head."""

from __future__ import annotations

from torch import Tensor
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from treespec.vllm_plugin.attention import TreeQueries
from treespec.vllm_plugin.device import Device
from treespec.vllm_plugin.head import DraftHead
from treespec.vllm_plugin.timing import StepClock


class DraftModel:
    """The loaded draft behind stock's proposer, whose buffers and metadata builder it uses.

    Nothing here looks at a tensor from the host: a pass can be captured in a CUDA graph.
    """

    def __init__(self, proposer: DraftModelProposer, head: DraftHead, tree_device: Device, clock: StepClock):
        self._proposer = proposer
        self._builder = None
        self.head = head
        self.tree_device = tree_device
        self.clock = clock
        self.device = proposer.device

    @property
    def builder(self):
        if self._builder is None:  # there is none before the cache is allocated
            self._builder = self._proposer._get_attention_metadata_builder()
        return self._builder

    @property
    def max_model_len(self) -> int:
        return self._proposer.max_model_len

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.logits(hidden)

    def run_causal(
        self,
        token_ids: Tensor,  # int64 [num_tokens]
        positions: Tensor,  # int64 [num_tokens]
        slots: Tensor,  # int64 [num_tokens]; -1: written nowhere
        starts: Tensor,  # int32 [batch + 1]; where each request's tokens start
        seq_lens: Tensor,  # int32 [batch]; tokens in the cache after the pass
        block_table: Tensor,  # int32 [batch, max_num_blocks]
        max_query_len: int,
        max_seq_len: int,
    ) -> Tensor:
        """Every token attends to all before it. Returns hidden states [num_tokens, hidden_size]."""
        common = self._common(starts, seq_lens, max_query_len, max_seq_len, block_table, slots)
        metadata = self.builder.build(common_prefix_len=0, common_attn_metadata=common)
        return self._forward(token_ids, positions, slots, metadata)

    def run_along(self, token_ids: Tensor, positions: Tensor, slots: Tensor, queries: TreeQueries) -> Tensor:
        """Every token attends along its tree. Returns hidden states [num_tokens, hidden_size]."""
        starts = self.starts(1) * len(slots)
        lens = queries.context_lens[:1].int()
        common = self._common(starts, lens, len(slots), queries.max_kv_len, queries.block_table, slots)
        metadata = self.tree_device.tree_only(self.builder, common, queries)
        return self._forward(token_ids, positions, slots, metadata)

    def starts(self, batch: int) -> Tensor:
        """0, 1, 2 ... batch, int32."""
        return self._proposer.arange[: batch + 1]

    def _common(self, starts, seq_lens, max_query_len, max_seq_len, block_table, slots):
        return CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,  # only the CPU's builder reads it
            seq_lens=seq_lens,
            num_reqs=len(starts) - 1,
            num_actual_tokens=len(slots),
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            block_table_tensor=block_table,
            slot_mapping=slots,
            causal=True,
        )

    def _forward(self, token_ids: Tensor, positions: Tensor, slots: Tensor, metadata) -> Tensor:
        started = self.clock.start()
        own, num_tokens = self._proposer, len(token_ids)
        own.input_ids[:num_tokens] = token_ids
        own.positions[:num_tokens] = positions
        with set_forward_context(
            dict.fromkeys(own.attn_layer_names, metadata),
            own.vllm_config,
            num_tokens=num_tokens,
            slot_mapping=dict.fromkeys(own.attn_layer_names, slots),
        ):
            hidden = own.model(
                input_ids=own.input_ids[:num_tokens],
                positions=own.positions[:num_tokens],
                inputs_embeds=None,
            )
        self.clock.stop("draft_forward", started)
        return hidden
