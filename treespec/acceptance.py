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

Recorded ranks say more than a table of them: tokens that are easy for the draft stand together, so that long
paths are accepted more often than independent levels would be. `Recording` replays a tree along the ranks.

    >>> recording = Recording([[0, 0, 1, 0, 0, 7, 0]])
    >>> recording.tokens_per_step(TokenTree.chain(2))
    2.0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def weights(self, path: tuple[int, ...]) -> np.ndarray:
        """Probability by rank that a child is accepted once `path` was. float64 [ranks]"""
        return self.marginals[self.row(len(path))]


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


class Recording:
    """Ranks of the target's tokens among the draft's candidates, answer by answer, -1 for none.

    The first token of an answer comes with the prompt's own pass; every step after it drafts a tree and
    accepts the path that the recorded ranks spell. For greedy decoding, and for sampling over the draft's
    likeliest children, that is what the engine does.
    """

    NUM_RANKS = 32  # of the table and of `weights`; a tree's higher ranks are replayed all the same
    PRIOR = 20.0  # contexts that the table counts for, beside those recorded on the very path

    def __init__(self, answers: Iterable[Sequence[int]], source: str = "unstated"):
        """Raises ValueError unless at least one answer has a token behind its first."""
        self.answers = [answer for answer in map(np.asarray, answers) if len(answer) > 1]
        self.source = source
        if not self.answers:
            raise ValueError("no ranks were recorded; expected at least one answer of two tokens")
        # All answers in a row, each without its first token and with one place behind it where none follows.
        self._ranks = np.concatenate([np.append(answer[1:], -1) for answer in self.answers])
        self._inside = np.concatenate([np.arange(1, 1 + len(a)) < len(a) for a in self.answers])
        self._at: dict[tuple[int, ...], np.ndarray] = {(): np.flatnonzero(self._inside)}

    @cached_property
    def table(self) -> RankAcceptance:
        """The share of every rank over all contexts, whatever stands before them."""
        counts, num_contexts = self._count(self._at[()])
        return RankAcceptance.from_counts(counts[None], np.array([num_contexts]), self.source)

    @property
    def num_ranks(self) -> int:
        return self.NUM_RANKS

    def by_depth(self, max_depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Ranks after so many tokens in a row that were the draft's first choice: counts [max_depth, ranks]
        and contexts [max_depth], as `RankAcceptance.from_counts` takes them."""
        rows = [self._count(self._starts((0,) * depth)) for depth in range(max_depth)]
        return np.stack([counts for counts, _ in rows]), np.array([contexts for _, contexts in rows])

    def weights(self, path: tuple[int, ...]) -> np.ndarray:
        """Probability by rank that a child is accepted once `path` was: recorded, steadied by the table."""
        counts, num_contexts = self._count(self._starts(path))
        return (counts + self.PRIOR * self.table.marginals[0]) / (num_contexts + self.PRIOR)

    def steps(self, tree: TokenTree) -> list[int]:
        """Steps that each answer takes with `tree`."""
        accepted = self._accepted(tree).tolist()
        steps, first = [], 0
        for answer in self.answers:
            position, count = first, 0
            end = first + len(answer) - 1
            while position < end:
                position += accepted[position] + 1
                count += 1
            steps.append(count)
            first = end + 1
        return steps

    def tokens_per_step(self, tree: TokenTree) -> float:
        """Mean acceptance length, bonus token counted."""
        return sum(len(answer) - 1 for answer in self.answers) / sum(self.steps(tree))

    def _accepted(self, tree: TokenTree) -> np.ndarray:
        """Nodes accepted by a step whose first child stands for this token. int64 [tokens]"""
        size = len(self._ranks)
        ranks = np.concatenate([self._ranks, np.full(tree.depth, -1)])
        node, accepted = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        for depth in range(tree.depth):
            rank = ranks[depth : depth + size]
            known = (node >= 0) & (rank >= 0) & (rank < tree.max_children)
            node = np.where(known, tree.children[node, np.where(known, rank, 0)], -1)
            accepted += node >= 0
        return accepted

    def _starts(self, path: tuple[int, ...]) -> np.ndarray:
        """Contexts that follow the ranks of `path`. int64 [contexts]"""
        if path not in self._at:
            before = self._starts(path[:-1])
            after = before[self._ranks[before] == path[-1]] + 1
            self._at[path] = after[self._inside[after]]
        return self._at[path]

    def _count(self, contexts: np.ndarray) -> tuple[np.ndarray, int]:
        ranks = self._ranks[contexts]
        ranks = ranks[(ranks >= 0) & (ranks < self.NUM_RANKS)]
        return np.bincount(ranks, minlength=self.NUM_RANKS).astype(np.float64), len(contexts)
