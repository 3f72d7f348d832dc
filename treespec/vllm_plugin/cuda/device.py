"""CUDA: Triton attention along a bias, cache slots moved in every layer at once, the device's own clock."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode

from treespec.vllm_plugin.cuda.attention import DraftTritonBackend
from treespec.vllm_plugin.cuda.graphs import DraftGraphs
from treespec.vllm_plugin.device import Device
from treespec.vllm_plugin.timing import StepClock


class CUDADevice(Device):
    draft_backend = DraftTritonBackend

    def __init__(self) -> None:
        # A pending span holds two stamps at most: an event comes round again after it has been read.
        self._events: list[torch.cuda.Event | None] = [None] * (2 * StepClock.MAX_PENDING + 64)
        self._next_event = 0

    def attend_along(self, builder, metadata, queries) -> None:
        builder.attend_along(metadata, queries)

    def tree_only(self, builder, common, queries):
        metadata = builder.build(common_prefix_len=0, common_attn_metadata=common)
        builder.attend_level(metadata, queries)
        return metadata

    def steady_drafter(self, levels, config) -> DraftGraphs | None:
        if config.compilation_config.cudagraph_mode == CUDAGraphMode.NONE:  # enforce_eager, too
            return None
        return DraftGraphs(levels, config)

    def move_kv(self, caches: Tensor, sources: Tensor, targets: Tensor) -> None:
        """caches: [num_layers, num_blocks, 2, block_size, num_kv_heads, head_size]"""
        block_size = caches.shape[3]
        # Picking out the real moves would wait for the device. A skipped one moves slot 0 onto itself,
        # which lies in vLLM's null block and belongs to no request.
        sources = sources.masked_fill(targets < 0, 0)
        targets = targets.clamp(min=0)
        moved = caches[:, sources // block_size, :, sources % block_size]
        caches[:, targets // block_size, :, targets % block_size] = moved

    def any(self, flags: Tensor) -> bool:
        return True

    def stamp(self) -> torch.cuda.Event:
        place = self._next_event
        self._next_event = (place + 1) % len(self._events)
        event = self._events[place]
        if event is None:
            event = self._events[place] = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end)
