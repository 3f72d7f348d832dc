"""A draft that is the target has every token accepted: any wrong position, mask or cache slot would show."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Client, running_engine

from treespec.tree import TokenTree
from treespec.vllm_plugin import CPU_WORKER

STEADY_WORKER = "steady_worker.SteadyWorker"

TREES = [
    TokenTree.chain(12),
    TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [0, 1], [0, 1, 0], [1], [1, 0]]),
    TokenTree.from_paths([[1], [0], [1, 0], [1, 1], [0, 0], [0, 1], [0, 0, 0], [0, 0, 1]]),
]


@pytest.fixture(scope="module", params=[CPU_WORKER, STEADY_WORKER], ids=["eager", "steady"])
def client(request, tiny_target):
    with running_engine(
        tiny_target,
        tiny_target,
        TREES[0],
        worker_cls=request.param,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,  # undrafted requests would leave blocks without draft keys
        block_size=16,  # small, so that drafts often end at the last slot a request has
        num_gpu_blocks_override=40,
    ) as llm:
        yield Client(llm)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.num_nodes} nodes, depth {tree.depth}")
@pytest.mark.parametrize("num_requests", [1, 6])
def test_every_depth_is_accepted(client, tree, num_requests):
    draw = np.random.default_rng(num_requests)
    prompts = [draw.integers(2, 128, draw.integers(20, 90)).tolist() for _ in range(num_requests)]
    max_tokens = 1 + 8 * (tree.depth + 1)  # the prompt's own token, then whole steps
    before = client.counters()
    drafted = client.generate(prompts, tree, max_tokens=max_tokens, ignore_eos=True)
    counters = client.counters().since(before)
    assert drafted == client.generate(prompts, "none", max_tokens=max_tokens, ignore_eos=True)
    if tree.is_chain:
        assert counters.num_accepted_tokens == counters.num_draft_tokens
    by_depth = counters.num_accepted_tokens_per_pos[: tree.depth]
    assert by_depth[0] == counters.num_drafts
    # A prompt that ends near a block's end gets a first tree that is cut short: at most one a prefill.
    short = num_requests + client.metric("num_preemptions")
    assert all(counters.num_drafts - count <= short for count in by_depth)
