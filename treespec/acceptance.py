"""How often the target accepts the draft's c-th best child: the profile that trees are grown from.

A profile is one table of conditional probabilities: row = depth of the child (the last row also holds for
every deeper level), column = rank of the child, 0 for the draft's likeliest token; the entry is the
probability that this child is accepted given that its elder siblings were not. At most one child of a node
is accepted, so the c-th is the accepted one with probability `p_c * prod_(i < c) (1 - p_i)`: these are the
weights p_b of Sequoia (2402.12374) and add up to at most one. A rank beyond the table was not measured and
is never used.

    >>> profile = RankAcceptance(((0.8, 0.5),))
    >>> profile.marginals.round(3).tolist()
    [[0.8, 0.1]]
    >>> expected_tokens(TokenTree.from_paths([[0], [1]]), profile)
    1.9
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from treespec.tree import TokenTree


@dataclass(frozen=True)
class RankAcceptance:
    """`conditional[level][rank]`, level 0 being the root's children. Raises ValueError on a bad table."""

    conditional: tuple[tuple[float, ...], ...]
    source: str = "unstated"  # where the numbers come from, one sentence

    def __post_init__(self) -> None:
        if not self.conditional or not self.conditional[0]:
            raise ValueError("the acceptance profile is empty; expected at least one probability")
        if len({len(row) for row in self.conditional}) > 1:
            raise ValueError("the acceptance profile's rows differ in length; expected one rank table")
        for level, row in enumerate(self.conditional, start=1):
            for rank, value in enumerate(row):
                if not 0 <= value <= 1:  # also catches NaN
                    raise ValueError(f"acceptance at depth {level}, rank {rank}: {value}; expected 0 to 1")

    @classmethod
    def from_counts(cls, counts: np.ndarray, num_contexts: np.ndarray, source: str) -> RankAcceptance:
        """From a calibration pass that noted the rank of the target's token in every context.

        `counts` [levels, ranks]: contexts at that depth whose token had that rank; `num_contexts` [levels]:
        all contexts at that depth, those whose token had none of the ranks included.
        """
        counts = np.asarray(counts, dtype=np.float64)
        num_contexts = np.asarray(num_contexts, dtype=np.float64)
        if counts.ndim != 2 or num_contexts.shape != counts.shape[:1]:
            raise ValueError(f"counts {counts.shape}, contexts {num_contexts.shape}; expected [L, R] and [L]")
        if (counts < 0).any() or (counts.sum(axis=1) > num_contexts).any():
            raise ValueError("rank counts must be at least 0 and add up to at most the number of contexts")
        left = num_contexts[:, None] - np.cumsum(counts, axis=1) + counts  # elder siblings were rejected
        conditional = np.divide(counts, left, out=np.zeros_like(counts), where=left > 0)
        return cls(tuple(tuple(row) for row in conditional.tolist()), source)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> RankAcceptance:
        """The inverse of `to_dict`. Raises ValueError on anything that is not such a dict."""
        try:
            rows = tuple(tuple(float(value) for value in row) for row in fields["conditional"])
            return cls(rows, str(fields.get("source", "unstated")))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                "no acceptance profile; expected {source: a sentence, conditional: [[p, ...], ...]}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "conditional": [list(row) for row in self.conditional]}

    @property
    def num_ranks(self) -> int:
        return len(self.conditional[0])

    @cached_property
    def marginals(self) -> np.ndarray:
        """Probability that a context's accepted token is this child. float64 [levels, ranks]"""
        conditional = np.asarray(self.conditional, dtype=np.float64)
        reached = np.cumprod(1 - conditional, axis=1)
        reached = np.concatenate([np.ones((len(conditional), 1)), reached[:, :-1]], axis=1)
        return conditional * reached

    def row(self, level: int) -> int:
        """The table's row for children `level + 1` edges below the root."""
        return min(level, len(self.conditional) - 1)


def node_probs(tree: TokenTree, acceptance: RankAcceptance) -> np.ndarray:
    """Probability that each node is on the accepted path; 1 for the root. float64 [num_nodes + 1]"""
    probs = np.ones(len(tree.parents))
    for node, parent in enumerate(tree.parents[1:], start=1):
        rank = tree.ranks[node]
        weights = acceptance.marginals[acceptance.row(tree.depths[parent])]
        probs[node] = probs[parent] * weights[rank] if rank < acceptance.num_ranks else 0.0
    return probs


def expected_tokens(tree: TokenTree, acceptance: RankAcceptance) -> float:
    """Tokens a step yields on average: the accepted nodes, and the bonus token that the root stands for."""
    return float(node_probs(tree, acceptance).sum())
