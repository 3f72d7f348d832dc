"""Drafted greedy output is the target's own, token by token, whatever the scheduler does.

One engine is set up so that a batch of long requests meets everything at once: chunked prefill (64 tokens a
step), prefix caching, preemption (few blocks). The same engine without drafting is the reference, and an
independent implementation (transformers) is the reference's reference.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Client, running_engine

from treespec.tree import TokenTree

TREES = {
    "chain of 1": TokenTree.chain(1),
    "chain of 5": TokenTree.chain(5),
    "flat": TokenTree.from_paths([[0], [1], [2], [3]]),
    "uneven": TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [0, 1], [1], [1, 0], [2]]),
    "3x2x2": TokenTree.from_paths(
        [[a] for a in range(3)]
        + [[a, b] for a in range(3) for b in range(2)]
        + [[a, b, c] for a in range(3) for b in range(2) for c in range(2)]
    ),
    "deep": TokenTree.from_paths([[0] * n for n in range(1, 13)] + [[1], [1, 0], [0, 1], [0, 0, 1]]),
}
LARGEST = TREES["3x2x2"]


@pytest.fixture(scope="module")
def client(tiny_target, tiny_draft):
    with running_engine(
        tiny_target,
        tiny_draft,
        LARGEST,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        enable_prefix_caching=True,
        block_size=32,
        num_gpu_blocks_override=11,  # ten of use: two of the longest requests never fit, one always does
    ) as llm:
        yield Client(llm)


def prompts(count: int, seed: int, low: int = 5, high: int = 60) -> list[list[int]]:
    """Random prompts of lengths between low and high."""
    draw = np.random.default_rng(seed)
    return [draw.integers(2, 128, draw.integers(low, high)).tolist() for _ in range(count)]


def test_undrafted_output_is_what_transformers_computes(client, tiny_target):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    for prompt in prompts(4, seed=1):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[
            0, len(prompt) :
        ]
        assert client.generate([prompt], "none", max_tokens=30) == [expected.tolist()]


@pytest.mark.parametrize("name", TREES)
def test_one_request(client, name):
    for prompt in prompts(3, seed=2):
        assert client.generate([prompt], TREES[name]) == client.generate([prompt], "none")


@pytest.mark.parametrize("name", TREES)
def test_requests_that_end_at_different_times(client, name):
    asked = prompts(9, seed=3)
    lengths = [{"max_tokens": n} for n in (1, 2, 3, 7, 12, 20, 33, 40, 5)]
    assert client.generate(asked, TREES[name], each=lengths) == client.generate(asked, "none", each=lengths)


@pytest.mark.parametrize("name", ["chain of 5", "uneven", "3x2x2"])
def test_chunked_prefill_prefix_caching_and_preemption_at_once(client, name):
    shared = prompts(1, seed=4, low=70, high=71)[0]
    asked = [shared + tail for tail in prompts(8, seed=5, low=30, high=60)]
    reference = client.generate(asked, "none", max_tokens=90)
    preempted, hits = client.metric("num_preemptions"), client.metric("prefix_cache_hits")
    assert client.generate(asked, TREES[name], max_tokens=90) == reference
    assert client.generate(asked, TREES[name], max_tokens=90) == reference  # the prompts are cached by now
    assert client.metric("num_preemptions") > preempted
    assert client.metric("prefix_cache_hits") > hits


@pytest.mark.parametrize("name", ["chain of 5", "uneven", "deep"])
def test_up_to_max_model_len(client, name):
    asked = prompts(2, seed=6, low=236, high=254)
    reference = client.generate(asked, "none", max_tokens=100)
    assert client.generate(asked, TREES[name], max_tokens=100) == reference
    assert [len(p) + len(out) for p, out in zip(asked, reference, strict=True)] == [256, 256]


@pytest.mark.parametrize("name", ["chain of 5", "uneven"])
def test_stop_tokens_and_stop_strings(client, name):
    asked = prompts(4, seed=7)
    plain = client.generate(asked, "none")
    stop_ids = [{"stop_token_ids": [ids[len(ids) // 2]]} for ids in plain]
    stopped = client.generate(asked, TREES[name], each=stop_ids)
    assert stopped == client.generate(asked, "none", each=stop_ids)
    assert all(len(short) < len(ids) for short, ids in zip(stopped, plain, strict=True))
    # vLLM looks for stop strings once a step: the text ends there, the ids may run on to the step's end.
    texts = [output.outputs[0].text for output in client.outputs(asked, "none")]
    stop_text = [{"stop": [text[10:12]]} for text in texts]
    drafted, plain = (client.outputs(asked, tree, each=stop_text) for tree in (TREES[name], "none"))
    for one, other in zip(drafted, plain, strict=True):
        assert one.outputs[0].text == other.outputs[0].text
        assert one.outputs[0].token_ids[: len(other.outputs[0].token_ids)] == other.outputs[0].token_ids


def test_a_batch_of_different_trees(client):
    """Also beside requests that are not drafted for and requests that verification does not cover."""
    from vllm import SamplingParams

    asked = prompts(6, seed=8)
    reference = client.generate(asked, "none")
    trees = [list(tree.parents) for tree in TREES.values()][:5]
    options = [
        SamplingParams(temperature=0, max_tokens=40, extra_args={"treespec": {"tree": tree}})
        for tree in [*trees, "none"]
    ]
    outputs = client.llm.generate([{"prompt_token_ids": p} for p in asked], options, use_tqdm=False)
    assert [list(output.outputs[0].token_ids) for output in outputs] == reference


def test_a_penalised_request_is_left_to_vllm(client):
    asked = prompts(4, seed=9)
    each = [{}, {"repetition_penalty": 1.5}, {}, {"presence_penalty": 0.7}]
    assert client.generate(asked, TREES["uneven"], each=each) == client.generate(asked, "none", each=each)


def test_logprobs_are_those_of_the_output_tokens(client):
    asked = prompts(3, seed=10)
    plain, drafted = (client.outputs(asked, tree, logprobs=2) for tree in ("none", TREES["uneven"]))
    for one, other in zip(plain, drafted, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        for left, right in zip(one.outputs[0].logprobs, other.outputs[0].logprobs, strict=True):
            assert left.keys() == right.keys()
            assert all(abs(left[t].logprob - right[t].logprob) < 1e-3 for t in left)


def test_the_plugin_acts_and_the_counters_say_so(client):
    client.stats()
    before = client.counters()
    client.generate(prompts(6, seed=11), TREES["3x2x2"])
    counters, stats = client.counters().since(before), client.stats()
    assert counters.num_drafts == stats["num_verified_trees"] > 0
    assert stats["off_chain_accepted_tokens"] > 0
    assert 0 < counters.num_accepted_tokens < counters.num_draft_tokens
    assert counters.num_accepted_tokens_per_pos[3:] == (0,) * (LARGEST.num_nodes - 3)


@pytest.mark.parametrize("asked", [list(TokenTree.chain(30).parents), [-1, 5], "wide", [[0], [1]]])
def test_a_tree_that_does_not_fit_is_not_drafted(client, asked):
    from vllm import SamplingParams

    [prompt] = prompts(1, seed=12)
    options = SamplingParams(temperature=0, max_tokens=40, extra_args={"treespec": {"tree": asked}})
    before = client.counters()
    [output] = client.llm.generate([{"prompt_token_ids": prompt}], options, use_tqdm=False)
    assert [list(output.outputs[0].token_ids)] == client.generate([prompt], "none")
    assert client.counters().since(before).num_drafts == 0
