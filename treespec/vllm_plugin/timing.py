"""Where a step's time goes, collected without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from treespec.vllm_plugin.device import Device

PARTS = ("target_forward", "verify", "compact", "draft_forward", "draft_choose")


class StepClock:
    """Sums the spans between stamps by part; spans are read only when somebody asks.

    `draft_forward` is the draft's model and head, `draft_choose` the choice of children; captured as one
    graph, both are `draft_forward`.
    """

    MAX_PENDING = 4096

    def __init__(self, device: Device):
        self._device = device
        self._is_paused = False
        self.reset()

    def reset(self) -> None:
        self._pending: list[tuple[str, Any, Any]] = []
        self._total_ms = dict.fromkeys(PARTS, 0.0)
        self.num_steps = 0
        self.num_draft_passes = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No spans in here: what is captured in a graph runs at other times than it is described."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def start(self) -> Any:
        return None if self._is_paused else self._device.stamp()

    def stop(self, part: str, start: Any) -> Any:
        """Close the span that `start` opened; the returned stamp opens the next."""
        if self._is_paused:
            return None
        end = self._device.stamp()
        self._pending.append((part, start, end))
        if len(self._pending) > self.MAX_PENDING:
            self._collect()
        return end

    def total_ms(self) -> dict[str, float]:
        self._collect()
        return dict(self._total_ms)

    def _collect(self) -> None:
        for part, start, end in self._pending:
            self._total_ms[part] += self._device.elapsed_ms(start, end)
        self._pending.clear()
