"""What differs between CPU and GPU, behind one small interface; everything else in the plugin is shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from treespec.vllm_plugin.attention import TreeQueries


class Device(ABC):
    """The attention of tree rows, the cache's layout, and the clock."""

    draft_backend: type  # attention backend class that draft layers get

    @abstractmethod
    def attend_along(self, builder: Any, metadata: Any, queries: TreeQueries) -> None:
        """Make a built attention metadata attend along `queries` in its tree rows."""

    @abstractmethod
    def tree_only(self, builder: Any, common: Any, queries: TreeQueries) -> Any:
        """Attention metadata of a forward pass whose rows all attend along `queries`."""

    def steady_drafter(self, levels: Any, config: Any) -> Any:
        """Drafting of a fixed shape (`cuda.graphs.DraftGraphs`); None where that saves nothing."""
        return None

    @abstractmethod
    def move_kv(self, caches: Tensor, sources: Tensor, targets: Tensor) -> None:
        """Copy cache slots in all layers at once, as if read before written.

        caches: [num_layers, ...cache shape]; sources, targets: int64 [num_moves], -1 targets are skipped.
        """

    @abstractmethod
    def any(self, flags: Tensor) -> bool:
        """False only if no flag is set and finding out is free: never waits for the device."""

    @abstractmethod
    def stamp(self) -> Any:
        """A moment on the device's own time line, without waiting for it."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two stamps; may wait for the device."""
