"""Grown trees: exact where they say so, close where they say so, and quick."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treespec.acceptance import RankAcceptance, expected_tokens
from treespec.cost import CostModel
from treespec.growth import grow_fastest, grow_tree
from treespec.simulate import grow_by_simulation
from treespec.tree import TokenTree

TYPICAL = RankAcceptance(((0.82, 0.45, 0.3, 0.22, 0.17, 0.14, 0.12, 0.1),))


def profiles(max_ranks: int = 4) -> st.SearchStrategy[RankAcceptance]:
    """Any profile, zeros and ones and ranks likelier than their elders included."""
    probability = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
    return st.integers(1, max_ranks).flatmap(
        lambda ranks: st.lists(
            st.lists(probability, min_size=ranks, max_size=ranks).map(tuple), min_size=1, max_size=3
        ).map(lambda rows: RankAcceptance(tuple(rows)))
    )


@cache
def all_trees(num_nodes: int) -> tuple[TokenTree, ...]:
    """Every tree of exactly so many nodes: 1, 2, 5, 14, 42, 132, 429 (the Catalan numbers)."""
    grown = [((-1,), (0,))]  # parents, and the path from the root to the last node
    for node in range(1, num_nodes + 1):
        grown = [
            ((*parents, path[place]), (*path[: place + 1], node))
            for parents, path in grown
            for place in range(len(path))
        ]
    return tuple(TokenTree(parents) for parents, _ in grown)


def test_brute_force_sees_every_tree() -> None:
    assert [len(set(all_trees(nodes))) for nodes in range(1, 8)] == [1, 2, 5, 14, 42, 132, 429]


@settings(max_examples=60, deadline=None)
@given(profiles(), st.integers(1, 7), st.integers(1, 7))
def test_programme_equals_brute_force(profile: RankAcceptance, num_nodes: int, max_depth: int) -> None:
    values = [
        expected_tokens(tree, profile)
        for tree in all_trees(num_nodes)
        if tree.depth <= max_depth and tree.max_children <= profile.num_ranks
    ]
    if not values:
        with pytest.raises(ValueError, match=f"{num_nodes} nodes in {max_depth} levels"):
            grow_tree(profile, num_nodes, max_depth)
        return
    tree = grow_tree(profile, num_nodes, max_depth)
    assert tree.num_nodes == num_nodes
    assert tree.depth <= max_depth
    assert expected_tokens(tree, profile) == pytest.approx(max(values), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(profiles(max_ranks=6), st.integers(8, 60), st.integers(0, 2**32 - 1))
def test_no_random_tree_beats_the_programme(profile: RankAcceptance, num_nodes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    path, parents, used = [0], [-1], [0]
    for node in range(1, num_nodes + 1):
        free = [place for place in range(len(path)) if used[path[place]] < profile.num_ranks]
        place = int(random.choice(free))
        parents.append(path[place])
        used[path[place]] += 1
        used.append(0)
        path = [*path[: place + 1], node]
    tree = TokenTree(tuple(parents))
    best = grow_tree(profile, num_nodes, tree.depth)
    assert expected_tokens(best, profile) >= expected_tokens(tree, profile) - 1e-12


def test_a_tree_never_expects_less_than_a_chain_of_as_many_nodes() -> None:
    for num_nodes in (1, 4, 16, 64):
        tree, chain = grow_tree(TYPICAL, num_nodes, 64), TokenTree.chain(num_nodes)
        assert expected_tokens(tree, TYPICAL) >= expected_tokens(chain, TYPICAL)


def test_512_nodes_grow_in_seconds() -> None:
    by_depth = RankAcceptance(
        tuple(tuple(p * 0.99**level for p in TYPICAL.conditional[0]) for level in range(24))
    )
    start = time.perf_counter()
    tree = grow_tree(by_depth, 512, 24)
    assert time.perf_counter() - start < 5
    assert tree.num_nodes == 512


def test_512_nodes_are_the_512_likeliest() -> None:
    """With falling ranks the best tree is the n likeliest nodes of all: an oracle the programme must meet."""
    likeliest = np.ones(1)
    kept = [likeliest]
    for _ in range(24):
        likeliest = np.sort(np.outer(likeliest, TYPICAL.marginals[0]).ravel())[::-1][:512]
        kept.append(likeliest)
    best = np.sort(np.concatenate(kept))[::-1][:513]
    assert expected_tokens(grow_tree(TYPICAL, 512, 24), TYPICAL) == pytest.approx(best.sum(), abs=1e-9)


@pytest.mark.parametrize(("num_nodes", "max_depth"), [(7, 5), (31, 12), (100, 24)])
def test_simulation_comes_within_half_a_percent_of_the_programme(num_nodes: int, max_depth: int) -> None:
    best = expected_tokens(grow_tree(TYPICAL, num_nodes, max_depth), TYPICAL)
    gaps = []
    for num_paths in (3_000, 100_000):
        tree = grow_by_simulation(TYPICAL, num_nodes, max_depth, num_paths=num_paths, seed=1)
        gaps.append(1 - expected_tokens(tree, TYPICAL) / best)
    assert -1e-12 <= gaps[1] <= max(gaps[0], 1e-12)
    assert gaps[1] < 0.005


def test_simulation_follows_depth_and_keeps_elder_siblings() -> None:
    tree = grow_by_simulation(RankAcceptance(((0.6, 0.5), (1.0, 0.0))), 4, 2, num_paths=1000, seed=0)
    assert tree == TokenTree.from_paths([[0], [1], [0, 0], [1, 0]])
    only_second = RankAcceptance(((0.6, 0.5), (0.0, 1.0)))  # below the root only second children are visited
    with pytest.raises(ValueError, match="visited 2 nodes in reach"):
        grow_by_simulation(only_second, 3, 2, num_paths=1000, seed=0)


def test_same_seed_same_tree_other_seed_other_paths() -> None:
    grown = [grow_by_simulation(TYPICAL, 64, 12, num_paths=2000, seed=seed).parents for seed in (3, 3, 4)]
    assert grown[0] == grown[1] != grown[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_nodes": 0}, "0 nodes; expected 1 to 512"),
        ({"num_nodes": 513}, "513 nodes; expected 1 to 512"),
        ({"max_depth": 0}, "0 levels; expected 1 to 512"),
        ({"num_paths": 0}, "0 paths"),
        ({"seed": -1}, "seed -1"),
        ({"num_paths": 10, "num_nodes": 500}, "take more paths"),
    ],
)
def test_impossible_simulations_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow_by_simulation(
            TYPICAL, **{"num_nodes": 5, "max_depth": 3, "num_paths": 100, "seed": 0} | arguments
        )


def random_cost(random: np.random.Generator) -> CostModel:
    """Curves with flat and steep pieces; a wide draft forward may cost several narrow ones."""
    target, draft = {1: 10.0}, {1: 1 + 5 * random.random()}
    for narrow, wide in ((1, 2), (2, 4), (4, 8)):
        target[wide] = target[narrow] + random.random() * random.choice([1, 5])
        draft[wide] = draft[narrow] + draft[1] * random.random() * random.choice([0, 0.1, 0.5, 1])
    return CostModel(target, draft, overhead_ms=1.0)


def test_fastest_is_within_one_percent_of_brute_force() -> None:
    random = np.random.default_rng(0)
    trees = [tree for nodes in range(1, 8) for tree in all_trees(nodes) if tree.max_children <= 4]
    for _ in range(40):
        profile = RankAcceptance((tuple(np.sort(random.random(4))[::-1].tolist()),))
        cost = random_cost(random)
        times = [cost.ms_per_token(tree, expected_tokens(tree, profile)) for tree in trees]
        grown = grow_fastest(profile, cost, 7, 7)
        assert cost.ms_per_token(grown, expected_tokens(grown, profile)) <= 1.01 * min(times)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_fastest_is_exact_where_width_is_free_to_draft(batch_size: int) -> None:
    random = np.random.default_rng(1)
    trees = [tree for nodes in range(1, 7) for tree in all_trees(nodes) if tree.max_children <= 4]
    for _ in range(20):
        shares = np.sort(random.dirichlet(np.ones(5), size=2)[:, :4])[:, ::-1]  # marginals, by depth
        conditional = shares / (1 - np.cumsum(shares, axis=1) + shares)
        profile = RankAcceptance(tuple(tuple(row) for row in conditional.tolist()))
        cost = CostModel(random_cost(random).target_ms, {1: 1 + 5 * random.random()}, overhead_ms=1.0)
        times = [cost.ms_per_token(tree, expected_tokens(tree, profile), batch_size) for tree in trees]
        grown = grow_fastest(profile, cost, 6, 6, batch_size)
        time_of_grown = cost.ms_per_token(grown, expected_tokens(grown, profile), batch_size)
        assert time_of_grown == pytest.approx(min(times), rel=1e-12)


def test_fastest_shrinks_as_verification_grows_dear() -> None:
    def nodes(ms_of_512: float) -> int:
        cost = CostModel({1: 10.0, 512: ms_of_512}, {1: 1.0, 64: 1.2}, overhead_ms=0.5)
        return grow_fastest(TYPICAL, cost, 256, 24).num_nodes

    sizes = [nodes(ms) for ms in (10.0, 20.0, 80.0, 640.0, 50_000.0)]
    assert sizes[0] == 256
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_fastest_refuses_no_sequence() -> None:
    with pytest.raises(ValueError, match="0 sequences"):
        grow_fastest(TYPICAL, CostModel({1: 10.0}, {1: 1.0}), 8, 4, batch_size=0)
