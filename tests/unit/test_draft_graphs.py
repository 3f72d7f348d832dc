"""Drafting of a fixed shape, as CUDA graphs capture it: sizes, what is served, padding. No GPU needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import itertools

from treespec.tree import TokenTree
from treespec.vllm_plugin.cuda import graphs
from treespec.vllm_plugin.cuda.graphs import MAX_BATCH, DraftGraphs, batch_sizes

CHAIN, TREE = TokenTree.chain(3), TokenTree.from_paths([[0], [0, 0], [1], [2]])


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 96, 127, 128, 1000])
def test_batch_sizes_reach_the_largest_batch_and_at_most_double(max_num_seqs):
    sizes = batch_sizes(max_num_seqs)
    assert sizes[0] == 1
    assert sizes[-1] == min(max_num_seqs, MAX_BATCH)
    assert all(small < large <= 2 * small for small, large in itertools.pairwise(sizes))


class Recorded:
    """Stands in for a captured graph, which only a GPU has."""

    made: list = []  # noqa: RUF012

    def __init__(self, levels, plan, batch, num_blocks, metadata):
        self.batch = batch
        Recorded.made.append((plan.tree, batch, metadata is not None))

    def replay(self, token_ids, roots, slots, block_table, draws):
        return self.batch


@pytest.fixture
def drafting(monkeypatch):
    monkeypatch.setattr(graphs, "CapturedDraft", Recorded)
    Recorded.made = []
    scheduler = SimpleNamespace(max_num_seqs=6, max_num_batched_tokens=64)
    levels = SimpleNamespace(model=SimpleNamespace(device="cpu"))
    return DraftGraphs(levels, SimpleNamespace(scheduler_config=scheduler))


def test_a_batch_takes_the_next_larger_graph(drafting):
    drafting.capture(CHAIN, num_blocks=4)
    assert [batch for _, batch, _ in Recorded.made] == [6, 4, 2, 1]
    for batch, taken in ((1, 1), (2, 2), (3, 4), (5, 6), (6, 6)):
        assert drafting.serves(CHAIN, batch, 4, None)
        assert drafting.draft(CHAIN, None, range(batch), None, None, None) == taken
    assert not drafting.serves(CHAIN, 7, 4, None)


def test_a_new_tree_is_captured_once_for_every_size_and_only_so_many_are(drafting):
    assert drafting.serves(TREE, 2, 4, None)
    assert {tree for tree, *_ in Recorded.made} == {TREE}
    count = len(Recorded.made)
    assert drafting.serves(TREE, 5, 4, None)
    assert len(Recorded.made) == count
    served = [drafting.serves(TokenTree.chain(k), 1, 4, None) for k in range(1, 40)]
    assert sum(served) + 1 == graphs.MAX_TREES


def test_filters_that_look_from_the_host_are_not_captured(drafting):
    plain = SimpleNamespace(top_k=None, top_p=None)
    assert drafting.serves(CHAIN, 1, 4, plain)
    assert not drafting.serves(CHAIN, 1, 4, SimpleNamespace(top_k=object(), top_p=None))
    assert not drafting.serves(CHAIN, 1, 4, SimpleNamespace(top_k=None, top_p=object()))


def test_what_does_not_fit_into_the_buffers_is_not_captured(drafting):
    wide = TokenTree.from_paths([[i] for i in range(20)] + [[i, 0] for i in range(20)])
    drafting.capture(wide, num_blocks=4)
    assert [batch for _, batch, _ in Recorded.made] == [2, 1]  # 20 rows a request, 64 tokens
