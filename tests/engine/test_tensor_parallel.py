"""Two ranks on the real engine: the draft whole on each or split, the output always the baseline's."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
from conftest import Client, running_engine
from on_ranks import disturb_one_rank, draft_shapes, tokens_gathered_while_drafting

from treespec.tree import TokenTree

TREE = TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [0, 1], [0, 1, 0], [1], [1, 0]])
TREES = [TREE, TokenTree.chain(3)]
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [20, 30, 40, 50, 60], [3, 4]]
SEEDED = {"temperature": 0.8, "each": [{"seed": 1}, {}, {"seed": 3}, {"temperature": 0.0}]}


@contextmanager
def client(target, draft, size, draft_size):
    """The scheduler runs in this process: it need not be started beside the ranks."""
    before = os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        with running_engine(
            target,
            draft,
            TREE,
            tensor_parallel_size=size,
            draft_tensor_parallel_size=draft_size,
            max_num_seqs=4,
            max_num_batched_tokens=64,
            num_gpu_blocks_override=64,
            additional_config={"treespec": {"draft_sampling": "probabilistic"}},
        ) as llm:
            yield Client(llm)
    finally:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


def answers(engine) -> list:
    """Greedy output and what was drafted and accepted for it; then the same sampled."""
    found = []
    for tree in TREES:
        for params in ({}, SEEDED):
            before = engine.counters()
            found.append(engine.generate(PROMPTS, tree, **params))
            counted = engine.counters().since(before)
            found.append((counted.num_draft_tokens, counted.num_accepted_tokens))
            assert counted.num_accepted_tokens > 0
    return found


@pytest.fixture(scope="module")
def single(tiny_target, tiny_draft):
    with client(tiny_target, tiny_draft, 1, 1) as engine:
        return engine.generate(PROMPTS, "none"), answers(engine)


def test_a_whole_draft_on_every_rank(tiny_target, tiny_draft, single):
    baseline, expected = single
    with client(tiny_target, tiny_draft, 2, 1) as engine:
        assert engine.llm.collective_rpc(draft_shapes) == [(1, 2, 128)] * 2
        engine.llm.collective_rpc(tokens_gathered_while_drafting)
        assert engine.generate(PROMPTS, "none") == baseline
        found = answers(engine)
        assert found == expected
        assert found[0] == found[4] == baseline
        engine.llm.collective_rpc(disturb_one_rank)
        with pytest.raises(Exception, match="the ranks' drafted or sampled tokens differ"):
            engine.generate(PROMPTS)


@pytest.mark.slow
def test_a_draft_split_like_its_target(tiny_target, tiny_draft, single):
    _, expected = single
    with client(tiny_target, tiny_draft, 2, 2) as engine:
        assert engine.llm.collective_rpc(draft_shapes) == [(1, 1, 64)] * 2
        assert answers(engine) == expected
