"""Trees that are grown from measured acceptance instead of guessed.

`grow_tree` is Sequoia's dynamic programme (2402.12374): the tree of n nodes and at most d levels that
yields the most tokens a step,

    T[m, l, b] = max over y of  T[m - y, l, b - 1] + p_b (1 + T[y - 1, l - 1, best])

T[m, l, b] being the expected accepted tokens below a node that has l levels and m nodes below it in exactly
b children, and p_b the probability that the b-th child is the accepted one. `grow_fastest` looks for the
least time per token under a measured cost model.

    >>> from treespec.acceptance import RankAcceptance
    >>> grow_tree(RankAcceptance(((0.8, 0.5),)), num_nodes=4, max_depth=3).parents
    (-1, 0, 1, 2, 0)

    python -m treespec.growth --method dp --nodes 8 --max-depth 5 --acceptance 0.7,0.4,0.2 \\
        --output trees/my_8.json
"""

from __future__ import annotations

import heapq

import numpy as np

from treespec.acceptance import RankAcceptance, Recording
from treespec.cost import CostModel
from treespec.tree import TokenTree, check_size


def grow_tree(acceptance: RankAcceptance, num_nodes: int, max_depth: int) -> TokenTree:
    """The tree of exactly `num_nodes` nodes and at most `max_depth` levels with the most expected tokens.

    Raises ValueError if the profile has too few ranks for so many nodes in so few levels.
    """
    check_size(num_nodes, max_depth)
    tokens = np.full(num_nodes + 1, -np.inf)  # most expected tokens by nodes below a node; at the last level
    tokens[0] = 0.0  # it is 0 without nodes, and there can be none
    plans = []
    for level in reversed(range(max_depth)):
        tokens, *plan = _best_children(tokens, acceptance.marginals[acceptance.row(level)])
        plans.insert(0, plan)
    if tokens[num_nodes] == -np.inf:
        raise ValueError(
            f"{num_nodes} nodes in {max_depth} levels; expected fewer nodes or more levels, "
            f"the acceptance profile has {acceptance.num_ranks} ranks"
        )
    parents = [-1]
    _place(parents, num_nodes, plans)
    return TokenTree(tuple(parents))


def _best_children(below: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One level of the programme, from the level beneath it; -inf stands for what cannot be.

    `below` [n + 1]: most expected tokens below a child, by nodes; `weights` [ranks]: p_b. Returns, by the
    number m of nodes below the parent: its most expected tokens [m], its number of children [m], and, if it
    has b children, the size of the b-th child's subtree with the child itself [b, m].
    """
    subtree = np.concatenate([[-np.inf], 1 + below[:-1]])  # by size: tokens from the child on, if accepted
    totals = [np.where(np.arange(len(below)) == 0, 0.0, -np.inf)]  # T[m, l, 0]
    sizes = [np.zeros(len(below), dtype=np.int64)]
    for weight in weights[: len(below) - 1]:
        weighted = np.full(len(below), -np.inf)  # 0 * -inf would be NaN
        np.multiply(weight, subtree, out=weighted, where=subtree > -np.inf)
        total, size = _best_split(totals[-1], weighted)
        totals.append(total)
        sizes.append(size)
    return np.max(totals, axis=0), np.argmax(totals, axis=0), np.stack(sizes)


def _best_split(elder: np.ndarray, youngest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """max over y of elder[m - y] + youngest[y], and the y that reaches it, for every m."""
    size = len(elder)
    padded = np.concatenate([np.full(size - 1, -np.inf), elder])
    sums = np.lib.stride_tricks.sliding_window_view(padded, size) + youngest[::-1]  # [m, size - 1 - y]
    place = sums.argmax(axis=1)
    return sums[np.arange(size), place], size - 1 - place


def _place(parents: list[int], num_nodes: int, plans: list[list[np.ndarray]]) -> None:
    """Append `num_nodes` nodes below the last of `parents`, in pre-order, as planned by level."""
    node = len(parents) - 1
    subtrees: list[int] = []
    if num_nodes:
        num_children, sizes = plans[0]
        for child in range(num_children[num_nodes], 0, -1):
            subtrees.insert(0, int(sizes[child, num_nodes]))
            num_nodes -= subtrees[0]
    for size in subtrees:
        parents.append(node)
        _place(parents, size - 1, plans[1:])


def grow_fastest(
    acceptance: RankAcceptance | Recording,
    cost: CostModel,
    max_nodes: int,
    max_depth: int,
    batch_size: int = 1,
) -> TokenTree:
    """The tree of at most `max_nodes` nodes and `max_depth` levels with the least expected time per token.

    It is the true optimum where the draft's time does not depend on its tokens and no rank is likelier than
    an elder one; under other costs no tree of 7 nodes or fewer was found more than 1% faster
    (tests/unit/test_growth.py).
    """
    candidates = fast_candidates(acceptance, cost, max_nodes, max_depth, batch_size)
    return min(candidates, key=lambda candidate: candidate[0])[1]


def fast_candidates(
    acceptance: RankAcceptance | Recording,
    cost: CostModel,
    max_nodes: int,
    max_depth: int,
    batch_size: int = 1,
) -> list[tuple[float, TokenTree]]:
    """Trees worth a closer look, each with its expected time per token in milliseconds.

    One for every depth and every cap on the inner nodes of a level (what a draft forward pays for): nodes
    are added likeliest first, the time is taken after each, and the least is kept.
    """
    check_size(max_nodes, max_depth)
    if batch_size < 1:
        raise ValueError(f"{batch_size} sequences; expected at least 1")
    measured = {tokens // batch_size for tokens in cost.draft_ms}  # a cost curve bends only there
    caps = sorted(cap for cap in {*range(1, 9), *measured, max_nodes} if 1 <= cap <= max_nodes)
    found = []
    for depth in range(1, max_depth + 1):
        for cap in caps:
            paths, probs, inner = _likeliest_nodes(acceptance, max_nodes, depth, cap)
            draft = np.where(inner > 0, cost.draft(batch_size * inner), 0.0).sum(axis=1)
            verify = cost.target(batch_size * np.arange(2, len(paths) + 2))
            ms = (draft + verify + cost.overhead_ms) / (1 + np.cumsum(probs))
            found.append((float(ms.min()), TokenTree.from_paths(paths[: ms.argmin() + 1])))
    return found


def grow_likeliest(acceptance: RankAcceptance | Recording, num_nodes: int, max_depth: int) -> TokenTree:
    """The `num_nodes` nodes that are accepted most often, where no rank is likelier than an elder one.

    Raises ValueError if there are not so many in `max_depth` levels.
    """
    check_size(num_nodes, max_depth)
    paths = _likeliest_nodes(acceptance, num_nodes, max_depth, num_nodes)[0]
    if len(paths) < num_nodes:
        raise ValueError(f"{num_nodes} nodes in {max_depth} levels; expected at most {len(paths)}")
    return TokenTree.from_paths(paths)


def _likeliest_nodes(
    acceptance: RankAcceptance | Recording, max_nodes: int, max_depth: int, max_inner: int
) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray]:
    """Nodes in the order of their probability, at most `max_inner` of a level having children.

    Every beginning of the order is a tree. Returns the paths, the probabilities [nodes] and the inner nodes
    of each level in the tree that ends with this node [nodes, max_depth].
    """
    paths, probs = [], []
    weights: dict[tuple[int, ...], np.ndarray] = {}  # of the children of a path
    opened = [0] * (max_depth + 1)
    waiting: list[tuple[float, tuple[int, ...], float]] = []  # (-probability, path, the parent's)

    def offer(path: tuple[int, ...], parent_prob: float) -> None:
        if path[-1] < acceptance.num_ranks:
            if path[:-1] not in weights:
                weights[path[:-1]] = acceptance.weights(path[:-1])
            heapq.heappush(waiting, (-parent_prob * weights[path[:-1]][path[-1]], path, parent_prob))

    offer((0,), 1.0)
    while waiting and len(paths) < max_nodes:
        negative, path, parent_prob = heapq.heappop(waiting)
        paths.append(path)
        probs.append(-negative)
        offer((*path[:-1], path[-1] + 1), parent_prob)
        if len(path) < max_depth and opened[len(path)] < max_inner:
            opened[len(path)] += 1
            offer((*path, 0), -negative)
    inner = np.zeros((len(paths), max_depth), dtype=np.int64)
    for index, path in enumerate(paths):
        inner[index, len(path) - 1] = path[-1] == 0  # a first child makes its parent an inner node
    return paths, np.array(probs), np.cumsum(inner, axis=0)


if __name__ == "__main__":
    from stages.common.errors import run_cli
    from treespec.tree_file import main

    run_cli(main)
