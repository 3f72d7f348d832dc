"""The shape of a token tree.

Node 0 is the root: the last token that is already part of the output. Nodes 1..N are drafted tokens in
depth-first pre-order, best child first. Two things follow from that order and the rest of the library
relies on both: every prefix of the node list is itself a valid tree (a scheduler may cut a draft
anywhere), and the likeliest path is nodes 1..D, so keeping it moves nothing in the cache.

    >>> tree = TokenTree.from_paths([[0], [1], [0, 0]])
    >>> tree.parents
    (-1, 0, 1, 0)
    >>> tree.depths
    (0, 1, 2, 1)
    >>> TokenTree.chain(3).parents
    (-1, 0, 1, 2)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

MAX_NODES = 512
MAX_DEPTH = MAX_NODES


def check_size(num_nodes: int, max_depth: int) -> None:
    """Raise ValueError unless a tree may have this many nodes and levels."""
    if not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(f"{num_nodes} nodes; expected 1 to {MAX_NODES}")
    if not 1 <= max_depth <= MAX_DEPTH:
        raise ValueError(f"{max_depth} levels; expected 1 to {MAX_DEPTH}")


@dataclass(frozen=True)
class TokenTree:
    """`parents[i]` is the parent of node i; `parents[0]` is -1. Raises ValueError unless in pre-order."""

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != -1:
            raise ValueError("node 0: the root must come first, with parent -1")
        if self.num_nodes < 1:
            raise ValueError("the tree has no drafted node; expected at least 1")
        if self.num_nodes > MAX_NODES:
            raise ValueError(f"{self.num_nodes} nodes; expected at most {MAX_NODES}")
        open_path = [0]  # the path from the root to the node before
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise ValueError(f"node {node}: parent {parent}; expected an earlier node (0..{node - 1})")
            while open_path and open_path[-1] != parent:
                open_path.pop()
            if not open_path:
                raise ValueError(f"node {node}: parent {parent}; expected depth-first pre-order")
            open_path.append(node)

    @classmethod
    def chain(cls, num_speculative_tokens: int) -> TokenTree:
        """A path of k drafted tokens: plain speculative decoding (2302.01318)."""
        return cls((-1, *range(num_speculative_tokens)))

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> TokenTree:
        """From child-rank paths, as in vLLM's `speculative_token_tree`: (0,), (0, 0), (1,) ...

        Raises ValueError where a parent or an elder sibling is missing or a path repeats.
        """
        ordered = sorted(tuple(int(rank) for rank in path) for path in paths)
        unique = set(ordered)
        index = {(): 0}
        for path in ordered:
            if not path or min(path) < 0:
                raise ValueError(f"node {list(path)}; expected a non-empty path of ranks from 0")
            if path in index:
                raise ValueError(f"node {list(path)} stands there twice; expected each path once")
            if path[:-1] not in unique and path[:-1] != ():
                raise ValueError(f"node {list(path)}: its parent {list(path[:-1])} is missing")
            if path[-1] > 0 and (*path[:-1], path[-1] - 1) not in unique:
                raise ValueError(f"node {list(path)}: its elder sibling of rank {path[-1] - 1} is missing")
            index[path] = len(index)
        return cls((-1, *(index[path[:-1]] for path in ordered)))

    @classmethod
    def from_file(cls, path: Path) -> TokenTree:
        """From a JSON file with a `parents` list, as `treespec.growth` writes it. Raises ValueError."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        parents = fields.get("parents") if isinstance(fields, dict) else None
        if not isinstance(parents, list) or any(type(parent) is not int for parent in parents):
            raise ValueError(f"{path} has no tree; expected 'parents', a list of whole numbers")
        return cls(tuple(parents))

    @property
    def num_nodes(self) -> int:
        """Drafted nodes; the root is not counted."""
        return len(self.parents) - 1

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Edges from the root, per node."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Place among siblings, 0 for the best; the root's is 0."""
        counts = [0] * len(self.parents)
        ranks = [0]
        for parent in self.parents[1:]:
            ranks.append(counts[parent])
            counts[parent] += 1
        return tuple(ranks)

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Child ranks from the root to each drafted node: vLLM's `speculative_token_tree`."""
        paths: list[tuple[int, ...]] = [()]
        for node, parent in enumerate(self.parents[1:], start=1):
            paths.append((*paths[parent], self.ranks[node]))
        return tuple(paths[1:])

    @property
    def depth(self) -> int:
        return max(self.depths)

    @cached_property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, self.num_nodes))

    @cached_property
    def trunk(self) -> int:
        """Leading nodes that form a chain; a prefix of at most so many nodes is one."""
        return next((i - 1 for i, parent in enumerate(self.parents) if parent != i - 1), self.num_nodes)

    @cached_property
    def num_children(self) -> tuple[int, ...]:
        counts = [0] * len(self.parents)
        for parent in self.parents[1:]:
            counts[parent] += 1
        return tuple(counts)

    @property
    def max_children(self) -> int:
        return max(self.num_children)

    @cached_property
    def children(self) -> np.ndarray:
        """Node of each child by rank, -1 where there is none. int64 [num_nodes + 1, max_children]"""
        table = np.full((len(self.parents), self.max_children), -1, dtype=np.int64)
        for node, parent in enumerate(self.parents[1:], start=1):
            table[parent, self.ranks[node]] = node
        return table

    @cached_property
    def ancestor_mask(self) -> np.ndarray:
        """True where column is the row's node or one of its ancestors. bool [num_nodes + 1, num_nodes + 1]"""
        size = len(self.parents)
        mask = np.eye(size, dtype=bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            mask[node] |= mask[parent]
        return mask

    def levels(self) -> list[np.ndarray]:
        """Nodes of each depth, the root's level first. int64 arrays, each ascending."""
        depths = np.asarray(self.depths)
        return [np.flatnonzero(depths == level) for level in range(self.depth + 1)]

    def prefix(self, num_nodes: int) -> TokenTree:
        """The tree of the first `num_nodes` drafted nodes."""
        return TokenTree(self.parents[: num_nodes + 1])

    def truncated(self, max_depth: int) -> TokenTree:
        """The tree without the nodes deeper than `max_depth` (at least 1)."""
        kept = [node for node, depth in enumerate(self.depths) if depth <= max_depth]
        place = {node: index for index, node in enumerate(kept)}
        return TokenTree((-1, *(place[self.parents[node]] for node in kept[1:])))
