"""Trees by Monte Carlo: follow many accepted paths, keep the nodes that were visited most.

A path starts at the root; at each level the profile decides which child is accepted, or that none is and
the path ends. A node's visits divided by the paths estimate its probability of being accepted, so the n
most visited nodes approach the best tree of n nodes as the paths grow. The same seed gives the same tree.

    >>> from treespec.acceptance import RankAcceptance
    >>> grow_by_simulation(RankAcceptance(((0.8, 0.5),)), 3, 2, num_paths=1000, seed=0).parents
    (-1, 0, 1, 0)
"""

from __future__ import annotations

import heapq

import numpy as np

from treespec.acceptance import RankAcceptance
from treespec.tree import TokenTree, check_size


def grow_by_simulation(
    acceptance: RankAcceptance, num_nodes: int, max_depth: int, *, num_paths: int, seed: int
) -> TokenTree:
    """The tree of the `num_nodes` nodes that `num_paths` simulated paths visited most.

    Raises ValueError if the paths visited fewer nodes than that.
    """
    check_size(num_nodes, max_depth)
    if num_paths < 1:
        raise ValueError(f"{num_paths} paths; expected at least 1")
    if seed < 0:
        raise ValueError(f"seed {seed}; expected at least 0")
    levels = _count_visits(acceptance, max_depth, num_paths, np.random.default_rng(seed))
    chosen: list[tuple[int, ...]] = []
    waiting: list[tuple[int, tuple[int, ...], int]] = []  # nodes whose parent and elder sibling are chosen

    def offer(path: tuple[int, ...], parent: int) -> None:
        """Queue the node at `path`, whose parent is visited node `parent` of the level above, if visited."""
        if path[-1] < acceptance.num_ranks and len(path) <= max_depth:
            keys, counts = levels[len(path) - 1]
            key = parent * acceptance.num_ranks + path[-1]
            index = int(np.searchsorted(keys, key))
            if index < len(keys) and keys[index] == key:
                heapq.heappush(waiting, (-int(counts[index]), path, index))

    offer((0,), 0)
    while waiting and len(chosen) < num_nodes:
        _, path, index = heapq.heappop(waiting)
        chosen.append(path)
        offer((*path, 0), index)
        parent = int(levels[len(path) - 1][0][index]) // acceptance.num_ranks
        offer((*path[:-1], path[-1] + 1), parent)
    if len(chosen) < num_nodes:
        raise ValueError(
            f"{num_paths} paths of at most {max_depth} levels visited {len(chosen)} nodes in reach; "
            f"expected {num_nodes}: take more paths, more levels or fewer nodes"
        )
    return TokenTree.from_paths(chosen)


def _count_visits(
    acceptance: RankAcceptance, max_depth: int, num_paths: int, generator: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Visited nodes of each level and their visits: (keys ascending, counts), both int64 [visited].

    A node's key is `parent * num_ranks + rank`, its parent being an index into the level above.
    """
    levels = []
    at = np.zeros(num_paths, dtype=np.int64)  # the node each living path has reached; at first the root
    for level in range(max_depth):
        thresholds = np.cumsum(acceptance.marginals[acceptance.row(level)])
        rank = np.searchsorted(thresholds, generator.random(len(at)), side="right")
        accepted = rank < acceptance.num_ranks
        keys = at[accepted] * acceptance.num_ranks + rank[accepted]
        keys, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
        levels.append((keys, counts))
    return levels
