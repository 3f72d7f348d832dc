"""vLLM's own counters, read before and after: `vllm:spec_decode_*` and the number of engine steps.

The registry is one for the process and never reset, so every figure is a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True)
class Counters:
    num_steps: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]

    @classmethod
    def read(cls, llm: Any) -> Counters:
        """From `LLM.get_metrics()`, which needs `disable_log_stats=False`."""
        found = {metric.name: metric for metric in llm.get_metrics()}

        def value(name: str) -> int:
            metric = found.get(f"vllm:spec_decode_num_{name}")
            return int(metric.value) if metric else 0

        per_pos = found.get("vllm:spec_decode_num_accepted_tokens_per_pos")
        return cls(
            num_steps=int(found["vllm:iteration_tokens_total"].count),
            num_drafts=value("drafts"),
            num_draft_tokens=value("draft_tokens"),
            num_accepted_tokens=value("accepted_tokens"),
            num_accepted_tokens_per_pos=tuple(int(count) for count in per_pos.values) if per_pos else (),
        )

    def since(self, before: Counters) -> Counters:
        """The difference. Positions are as many as the later reading has."""
        earlier = before.num_accepted_tokens_per_pos or (0,) * len(self.num_accepted_tokens_per_pos)
        return Counters(
            num_steps=self.num_steps - before.num_steps,
            num_drafts=self.num_drafts - before.num_drafts,
            num_draft_tokens=self.num_draft_tokens - before.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens - before.num_accepted_tokens,
            num_accepted_tokens_per_pos=tuple(
                now - then for now, then in zip(self.num_accepted_tokens_per_pos, earlier, strict=True)
            ),
        )

    def plus(self, other: Counters) -> Counters:
        """Both together. Positions are as many as either has."""
        per_pos = zip_longest(
            self.num_accepted_tokens_per_pos, other.num_accepted_tokens_per_pos, fillvalue=0
        )
        return Counters(
            num_steps=self.num_steps + other.num_steps,
            num_drafts=self.num_drafts + other.num_drafts,
            num_draft_tokens=self.num_draft_tokens + other.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens + other.num_accepted_tokens,
            num_accepted_tokens_per_pos=tuple(ours + theirs for ours, theirs in per_pos),
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Counters:
        """What `dataclasses.asdict` gave, by way of JSON or not."""
        per_pos = tuple(fields["num_accepted_tokens_per_pos"])
        return cls(**{**fields, "num_accepted_tokens_per_pos": per_pos})
