"""Two ranks on the real engine: the draft whole on each or split, the output always the baseline's."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
from conftest import Client, running_engine

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


def draft_shapes(worker) -> tuple[int, int, int]:
    """KV heads of the target's and the draft's layers on this rank, and the rows of the draft's head."""
    runner = worker.model_runner
    layers = runner.vllm_config.compilation_config.static_forward_context
    draft = set(runner.drafter.attn_layer_names)
    target = next(name for name in layers if name not in draft)
    heads = [layers[name].num_kv_heads for name in (target, min(draft))]
    return *heads, len(runner.drafter.model.lm_head.weight)


def disturb_one_rank(worker) -> None:
    if worker.rank == 1:
        worker.model_runner.drafter.model.lm_head.weight.data.neg_()


def tokens_gathered_while_drafting(worker) -> None:
    """From now on a collective operation of the target's group fails while a draft is made."""
    from vllm.distributed.parallel_state import get_tp_group

    drafter, group = worker.model_runner.drafter, get_tp_group()
    draft = drafter.draft

    def refuse(*args, **kwargs):
        raise AssertionError("a collective operation while drafting")

    def guarded(*args):
        names = ("all_reduce", "all_gather", "gather")
        for name in names:
            setattr(group, name, refuse)
        try:
            return draft(*args)
        finally:
            for name in names:
                delattr(group, name)

    drafter.draft = guarded


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
