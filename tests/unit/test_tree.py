"""The token tree: what the scheduler, the mask and the verifier rely on, for any tree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treespec.tree import MAX_DEPTH, MAX_NODES, TokenTree

TREES = Path(__file__).resolve().parents[2] / "trees"


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 24) -> TokenTree:
    """Any tree: each next node hangs below some node of the path to the node before."""
    path, parents = [0], [-1]
    for node in range(1, draw(st.integers(1, max_nodes)) + 1):
        parent = draw(st.sampled_from(path))
        parents.append(parent)
        path = [*path[: path.index(parent) + 1], node]
    return TokenTree(tuple(parents))


def child_rank_path(tree: TokenTree, node: int) -> tuple[int, ...]:
    path: tuple[int, ...] = ()
    while node:
        path = (tree.ranks[node], *path)
        node = tree.parents[node]
    return path


@given(trees(), st.data())
def test_every_prefix_is_a_tree(tree: TokenTree, data: st.DataObject) -> None:
    """The scheduler may cut a draft after any node."""
    cut = tree.prefix(data.draw(st.integers(1, tree.num_nodes)))
    size = len(cut.parents)
    assert cut.parents == tree.parents[:size]
    assert cut.depths == tree.depths[:size]
    assert cut.ranks == tree.ranks[:size]
    np.testing.assert_array_equal(cut.ancestor_mask, tree.ancestor_mask[:size, :size])


@given(trees())
def test_mask_is_ancestors_by_brute_force(tree: TokenTree) -> None:
    for node in range(len(tree.parents)):
        ancestors, at = {node}, node
        while at != 0:
            at = tree.parents[at]
            ancestors.add(at)
        assert set(np.flatnonzero(tree.ancestor_mask[node])) == ancestors
        assert len(ancestors) == tree.depths[node] + 1


@given(trees(), st.randoms())
def test_paths_and_parents_are_the_same_tree(tree: TokenTree, random) -> None:
    paths = [child_rank_path(tree, node) for node in range(1, len(tree.parents))]
    random.shuffle(paths)
    assert TokenTree.from_paths(paths) == tree


@given(trees())
def test_children_levels_and_counts_agree(tree: TokenTree) -> None:
    for node, row in enumerate(tree.children):
        found = [child for child in range(len(tree.parents)) if tree.parents[child] == node]
        assert [child for child in row if child >= 0] == found
        assert tree.num_children[node] == len(found)
        assert [tree.ranks[child] for child in found] == list(range(len(found)))
    assert sorted(np.concatenate(tree.levels())) == list(range(len(tree.parents)))
    assert [set(np.array(tree.depths)[level]) for level in tree.levels()] == [
        {depth} for depth in range(tree.depth + 1)
    ]


@given(trees())
def test_the_likeliest_path_comes_first(tree: TokenTree) -> None:
    """Keeping it then moves nothing in the cache."""
    node = 0
    while tree.num_children[node]:
        assert tree.children[node, 0] == node + 1
        node += 1


@given(st.integers(1, MAX_DEPTH))
def test_chain_is_the_tree_of_width_one(num_tokens: int) -> None:
    chain = TokenTree.chain(num_tokens)
    assert chain.is_chain
    assert chain.max_children == 1
    assert chain.depth == chain.num_nodes == num_tokens
    assert np.array_equal(chain.ancestor_mask, np.tri(num_tokens + 1, dtype=bool))


def test_a_wide_tree_is_no_chain() -> None:
    assert not TokenTree.from_paths([[0], [1]]).is_chain


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((), "root"),
        ((0, 0), "root"),
        ((-1,), "no drafted node"),
        ((-1, 1), "node 1: parent 1"),
        ((-1, 0, -1), "node 2: parent -1"),
        ((-1, 0, 3, 2), "node 2: parent 3"),
        ((-1, 0, 0, 1), "node 3: parent 1; expected depth-first"),
        ((-1, *[0] * (MAX_NODES + 1)), f"{MAX_NODES + 1} nodes"),
        (tuple(range(-1, MAX_NODES + 1)), f"{MAX_NODES + 1} nodes"),
    ],
)
def test_malformed_parents_are_named(parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree(parents)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no drafted node"),
        ([[]], "non-empty path"),
        ([[0], [-1]], r"node \[-1\]"),
        ([[0, 0]], r"node \[0, 0\]: its parent \[0\] is missing"),
        ([[0], [2]], r"node \[2\]: its elder sibling of rank 1 is missing"),
        ([[0], [1], [0]], r"node \[0\] stands there twice"),
    ],
)
def test_malformed_paths_are_named(paths: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree.from_paths(paths)


@pytest.mark.parametrize("content", ["[]", "{}", '{"parents": 3}', '{"parents": [-1, 0.0]}', "{", '"text"'])
def test_files_without_a_tree_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tree.json"
    file.write_text(content)
    with pytest.raises(ValueError):  # noqa: PT011 - the JSON reader's own message is as good as ours
        TokenTree.from_file(file)


@pytest.mark.parametrize("name", ["mc_sim_8b_12", "mc_sim_8b_512"])
def test_shipped_trees_are_what_they_say(name: str) -> None:
    fields = json.loads((TREES / f"{name}.json").read_text())
    tree = TokenTree.from_file(TREES / f"{name}.json")
    assert fields["name"] == name
    assert (fields["num_nodes"], fields["depth"]) == (tree.num_nodes, tree.depth)
    assert (tree.num_nodes, tree.depth) == {"mc_sim_8b_12": (31, 12), "mc_sim_8b_512": (512, 24)}[name]
    assert fields["level_widths"] == [len(level) for level in tree.levels()]
