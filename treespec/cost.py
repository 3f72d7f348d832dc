"""What a step costs, and what speculation should therefore gain.

`CostModel` holds measured forwards of target and draft by the number of tokens in the step; the functions
are the laws the report holds measurements against. A speculative step drafts level by level and verifies
once; the draft forwards the root, then the inner nodes of every level, since leaves have nothing to draft:

    step = sum over levels of T_draft(inner nodes) + T_target(nodes + 1) + overhead
    time per token = step / mean acceptance length          (bonus token counted)

A chain of k is the tree of width one: k T_draft(1) + T_target(k + 1) + overhead.

    >>> cost = CostModel(target_ms={1: 10.0, 9: 12.0}, draft_ms={1: 1.0}, overhead_ms=0.5)
    >>> cost.step_ms(TokenTree.chain(4))
    15.5
    >>> round(chain_speedup(0.8, 4, 0.1), 3)
    2.401
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from treespec.acceptance import RankAcceptance, expected_tokens
from treespec.tree import TokenTree


@dataclass(frozen=True)
class CostModel:
    """Mean milliseconds of one forward by tokens in the step: `{1: 14.1, 2: 14.2, ...}`.

    `overhead_ms` is the rest of a speculative step (verification, compaction, scheduler),
    `baseline_overhead_ms` the rest of a step without speculation. Raises ValueError on an empty curve,
    fewer than one token, or a time that is not positive and finite.
    """

    target_ms: Mapping[int, float]
    draft_ms: Mapping[int, float]
    overhead_ms: float = 0.0
    baseline_overhead_ms: float = 0.0

    def __post_init__(self) -> None:
        for field in ("target_ms", "draft_ms"):
            curve = dict(sorted(getattr(self, field).items()))
            if not curve:
                raise ValueError(f"{field}: no point; expected at least one of tokens: milliseconds")
            for tokens, ms in curve.items():
                if tokens < 1 or not 0 < ms < float("inf"):
                    raise ValueError(f"{field}: {tokens}: {ms}; expected tokens >= 1 and milliseconds > 0")
            object.__setattr__(self, field, curve)
        for field in ("overhead_ms", "baseline_overhead_ms"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"{field}: {getattr(self, field)}; expected milliseconds >= 0")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CostModel:
        """The inverse of `to_dict` (JSON has only text for keys). Raises ValueError on other dicts."""
        try:
            curves = {
                name: {int(tokens): float(ms) for tokens, ms in fields[name].items()}
                for name in ("target_ms", "draft_ms")
            }
            rest = {name: float(fields.get(name, 0.0)) for name in ("overhead_ms", "baseline_overhead_ms")}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                "no costs; expected {target_ms: {tokens: ms}, draft_ms: {tokens: ms}}"
            ) from error
        return cls(**curves, **rest)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @cached_property
    def _curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        curves = {"target": self.target_ms, "draft": self.draft_ms}
        return {
            name: (np.array(list(curve)), np.array(list(curve.values()))) for name, curve in curves.items()
        }

    def target(self, num_tokens: int | np.ndarray) -> np.ndarray:
        """Milliseconds of a target forward over `num_tokens`, all sequences together."""
        return _interpolate(num_tokens, *self._curves["target"])

    def draft(self, num_tokens: int | np.ndarray) -> np.ndarray:
        """Milliseconds of a draft forward over `num_tokens`, all sequences together."""
        return _interpolate(num_tokens, *self._curves["draft"])

    def step_ms(self, tree: TokenTree, batch_size: int = 1) -> float:
        """One speculative step in which each of `batch_size` sequences drafts and verifies `tree`."""
        draft = self.draft(batch_size * inner_widths(tree)).sum()
        return float(draft + self.target(batch_size * (tree.num_nodes + 1)) + self.overhead_ms)

    def ms_per_token(self, tree: TokenTree, mean_acceptance_length: float, batch_size: int = 1) -> float:
        """What one sequence waits for a token, its acceptance length being given (bonus token counted)."""
        return self.step_ms(tree, batch_size) / mean_acceptance_length

    def baseline_ms_per_token(self, batch_size: int = 1) -> float:
        """The same without speculation: one target forward a token."""
        return float(self.target(batch_size)) + self.baseline_overhead_ms

    def speedup(self, tree: TokenTree, mean_acceptance_length: float, batch_size: int = 1) -> float:
        """Predicted time per token without speculation over that with `tree`."""
        with_tree = self.ms_per_token(tree, mean_acceptance_length, batch_size)
        return self.baseline_ms_per_token(batch_size) / with_tree


def best_chain(cost: CostModel, acceptance: RankAcceptance, max_tokens: int, batch_size: int = 1) -> int:
    """The k of 1..max_tokens whose chain has the least expected time per token; the smallest of equals."""
    chains = [TokenTree.chain(k) for k in range(1, max_tokens + 1)]
    times = [cost.ms_per_token(chain, expected_tokens(chain, acceptance), batch_size) for chain in chains]
    return 1 + int(np.argmin(times))


def inner_widths(tree: TokenTree) -> np.ndarray:
    """Tokens of each draft forward: the nodes with children, by depth. int64 [tree.depth]"""
    inner = np.asarray(tree.num_children) > 0
    return np.bincount(np.asarray(tree.depths)[inner], minlength=tree.depth)


def chain_tokens(acceptance_rate: float, num_speculative_tokens: int) -> float:
    """Expected tokens of a step, 1 + a + ... + a^k, each token being accepted with probability a.

    Leviathan et al. 2211.17192, equation 1. Raises ValueError if a is outside [0, 1].
    """
    if not 0 <= acceptance_rate <= 1:
        raise ValueError(f"acceptance rate {acceptance_rate}; expected 0 to 1")
    return float(np.sum(acceptance_rate ** np.arange(num_speculative_tokens + 1, dtype=np.float64)))


def chain_speedup(acceptance_rate: float, num_speculative_tokens: int, cost_ratio: float) -> float:
    """(1 - a^(k+1)) / ((1 - a)(k c + 1)), c = draft step time / target step time (2211.17192, theorem 3.8).

    Its bound is 1 / (1 - a): c -> 0 and k -> infinity.
    """
    return chain_tokens(acceptance_rate, num_speculative_tokens) / (num_speculative_tokens * cost_ratio + 1)


def best_chain_length(acceptance_rate: float, cost_ratio: float, max_tokens: int = 64) -> int:
    """The k of 1..max_tokens with the largest `chain_speedup`; the smallest of equals."""
    speedups = [chain_speedup(acceptance_rate, k, cost_ratio) for k in range(1, max_tokens + 1)]
    return 1 + int(np.argmax(speedups))


def decode_floor_ms(weight_bytes: float, memory_bandwidth_gb_per_s: float) -> float:
    """The least time of one forward: every weight read once from memory (GB = 1e9 bytes)."""
    return weight_bytes / (memory_bandwidth_gb_per_s * 1e9) * 1e3


def verify_cost_floor(num_tokens: int, ridge_tokens: float) -> float:
    """The least T_target(n) / T_target(1): flat until arithmetic costs more than reading the weights.

    `ridge_tokens` is where that happens: peak FLOP/s over memory bandwidth, counted in tokens (about 295 on
    an H100 in bf16, 206 on an H200).
    """
    return max(1.0, num_tokens / ridge_tokens)


def _interpolate(num_tokens: int | np.ndarray, tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Piecewise linear; before the first point its value, past the last the last segment's slope, if upward.

    Holding the last value instead would make every further token free, which no machine does.
    """
    inside = np.interp(num_tokens, tokens, times)
    if len(tokens) == 1:
        return inside
    slope = max(0.0, (times[-1] - times[-2]) / (tokens[-1] - tokens[-2]))
    return inside + slope * np.maximum(0, np.asarray(num_tokens) - tokens[-1])
