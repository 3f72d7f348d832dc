"""The KV cache as the plugin lays it out: one buffer for the target's layers and one for the draft's.

Moving an accepted path's keys and values is one operation a buffer then, not one a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from treespec.vllm_plugin.device import Device


class StackedCaches:
    """The part of a runner that allocates caches; goes before GPUModelRunner, with `drafter` loaded."""

    tree_device: Device

    def move_kv(self, sources: Tensor, targets: Tensor) -> None:
        """Copy cache slots in every layer; both [n], a target of -1 is left out."""
        for caches in self.stacked_caches:
            self.tree_device.move_kv(caches, sources, targets)

    def _allocate_kv_cache_tensors(self, kv_cache_config):
        """One buffer for the target's layers and one for the draft's, so that a move is one operation."""
        if any(len(tensor.shared_by) != 1 for tensor in kv_cache_config.kv_cache_tensors):
            raise ValueError("treespec: layers that share a cache tensor; expected one KV cache group")
        draft_layers = set(self.drafter.attn_layer_names)
        sizes: dict[tuple[bool, int], list[str]] = {}
        for tensor in kv_cache_config.kv_cache_tensors:
            name = tensor.shared_by[0]
            sizes.setdefault((name in draft_layers, tensor.size), []).append(name)
        raw: dict[str, Tensor] = {}
        self._cache_buffers = []
        for (_, size), names in sizes.items():
            buffer = torch.zeros(len(names), size, dtype=torch.int8, device=self.device)
            self._cache_buffers.append((buffer, names[0]))
            raw.update(zip(names, buffer, strict=True))
        return raw

    def initialize_kv_cache_tensors(self, kv_cache_config, kernel_block_sizes):
        caches = super().initialize_kv_cache_tensors(kv_cache_config, kernel_block_sizes)
        self.stacked_caches = []
        for buffer, name in self._cache_buffers:
            layer = caches[name]
            whole = buffer.view(layer.dtype)
            self.stacked_caches.append(
                whole.as_strided((len(whole), *layer.shape), (whole.stride(0), *layer.stride()))
            )
        return caches
