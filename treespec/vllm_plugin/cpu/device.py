"""CPU: masked flash attention, keys stored transposed, the host's clock."""

from __future__ import annotations

from time import perf_counter

from torch import Tensor

from treespec.vllm_plugin.cpu.attention import DraftAttentionBackend
from treespec.vllm_plugin.device import Device


class CPUDevice(Device):
    draft_backend = DraftAttentionBackend

    def attend_along(self, builder, metadata, queries) -> None:
        builder.build_tree(metadata, queries)

    def tree_only(self, builder, common, queries):
        return builder.build_all_tree(common, queries)

    def move_kv(self, caches: Tensor, sources: Tensor, targets: Tensor) -> None:
        kept = targets >= 0
        sources, targets = sources[kept], targets[kept]
        num_layers, _, num_blocks, kv_heads, block_size, head_size = caches.shape
        keys = caches[:, 0].view(num_layers, num_blocks, kv_heads, head_size, block_size)
        values = caches[:, 1]
        source_block, source_slot = sources // block_size, sources % block_size
        target_block, target_slot = targets // block_size, targets % block_size
        keys[:, target_block, :, :, target_slot] = keys[:, source_block, :, :, source_slot]
        values[:, target_block, :, target_slot] = values[:, source_block, :, source_slot]

    def any(self, flags: Tensor) -> bool:
        return bool(flags.any())

    def stamp(self) -> float:
        return perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3
