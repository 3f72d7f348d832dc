"""Sampled output has the target's distribution, on the real engine, against exact probabilities.

The reference is exact: under top-k 3, four tokens have 81 outcomes, whose probabilities follow from the
target's logits. A chi-square test at an error rate of 1 in 1,000, its seeds fixed; deliberately broken rules
must fail it by orders of magnitude.
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from conftest import running_engine
from scipy.stats import chisquare

from treespec import verify
from treespec.tree import TokenTree
from treespec.vllm_plugin import verification
from treespec.vllm_plugin.sampling import request_uniforms

PROMPT = [17, 5, 99, 64, 23]
NUM_TOKENS, TOP_K = 4, 3
NUM_SAMPLES = 4000
ERROR_RATE = 1e-3
CHAIN = TokenTree.chain(3)
TREE = TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [0, 1], [1], [1, 0], [2]])
WIDE = TokenTree.from_paths([[0], [0, 0], [0, 1], [1], [1, 0], [1, 1], [2]])


@pytest.fixture(scope="module")
def runner_and_llm(tiny_target, tiny_draft):
    """In this process, so that a test can break a rule."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        with running_engine(
            tiny_target,
            tiny_draft,
            TREE,
            max_num_seqs=64,
            block_size=32,
            additional_config={"treespec": {"draft_sampling": "probabilistic"}},
        ) as llm:
            yield llm.llm_engine.model_executor.driver_worker.worker.model_runner, llm
    finally:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"


@pytest.fixture(scope="module")
def exact(tiny_target) -> dict[tuple[int, ...], float]:
    """Probability of every outcome of NUM_TOKENS tokens under top-k."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    outcomes: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        prefixes = list(outcomes)
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPT, *prefix] for prefix in prefixes])).logits[:, -1]
        best = logits.topk(TOP_K)
        probs = best.values.double().softmax(-1)
        outcomes = {
            (*prefix, int(token)): outcomes[prefix] * float(prob)
            for prefix, tokens, row in zip(prefixes, best.indices, probs, strict=True)
            for token, prob in zip(tokens, row, strict=True)
        }
    return outcomes


def sample(llm, tree: TokenTree, count: int, seed: int = 0, **params) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    options = [
        SamplingParams(
            temperature=1.0,
            top_k=TOP_K,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            seed=seed * 1_000_000 + index,
            extra_args={"treespec": {"tree": list(tree.parents)}},
            **params,
        )
        for index in range(count)
    ]
    outputs = llm.generate([{"prompt_token_ids": PROMPT}] * count, options, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def p_value(samples: list[tuple[int, ...]], exact: dict[tuple[int, ...], float]) -> float:
    """Chi-square of outcome counts; outcomes expected less than 5 times are pooled."""
    if not set(samples) <= set(exact):
        return 0.0  # an outcome that the target cannot have
    counts = np.array([samples.count(outcome) for outcome in exact], dtype=float)
    expected = np.array(list(exact.values())) * len(samples)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("tree", [CHAIN, TREE, WIDE], ids=["chain", "tree", "wide"])
@pytest.mark.parametrize("draws", [True, False], ids=["probabilistic", "greedy drafts"])
def test_outcomes_have_the_targets_probabilities(runner_and_llm, exact, tree, draws, monkeypatch):
    runner, llm = runner_and_llm
    monkeypatch.setattr(runner.drafter, "draws_children", draws)
    before = runner.num_rounds
    samples = sample(llm, tree, NUM_SAMPLES)
    assert p_value(samples, exact) > ERROR_RATE
    assert runner.num_rounds - before > NUM_SAMPLES  # every request was drafted for


def reuse_one_uniform(generators, index, counts, device):
    uniforms = request_uniforms(generators, index, counts, device)
    return uniforms[:, :1].expand_as(uniforms).contiguous()


BROKEN = {
    "residual forgotten": (verify, "residual", lambda target_probs, draft_probs: target_probs),
    "always accepted": (verify, "acceptance_probability", lambda target, draft: torch.ones_like(target)),
    "sibling left in the draft": (verify, "without", lambda draft_probs, token: draft_probs),
    "bonus from the row before": (verify, "per_row", lambda chosen, new, old: old),
    "one uniform for all tests": (verification, "request_uniforms", reuse_one_uniform),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_seen(runner_and_llm, exact, name, monkeypatch):
    _, llm = runner_and_llm
    module, function, broken = BROKEN[name]
    monkeypatch.setattr(module, function, broken)
    assert p_value(sample(llm, WIDE, NUM_SAMPLES), exact) < ERROR_RATE


def test_a_mixed_batch_keeps_both_promises(runner_and_llm, exact):
    from vllm import SamplingParams

    _, llm = runner_and_llm
    tree = {"treespec": {"tree": list(TREE.parents)}}
    greedy = SamplingParams(temperature=0, max_tokens=12, extra_args=tree)
    alone = llm.generate([{"prompt_token_ids": PROMPT}], greedy, use_tqdm=False)[0].outputs[0].token_ids
    options = []
    for index in range(NUM_SAMPLES):
        options.append(
            SamplingParams(temperature=1.0, top_k=TOP_K, max_tokens=NUM_TOKENS, seed=index, ignore_eos=True)
        )
        if index % 4 == 0:
            options.append(greedy)
    outputs = llm.generate([{"prompt_token_ids": PROMPT}] * len(options), options, use_tqdm=False)
    ids = [tuple(output.outputs[0].token_ids) for output in outputs]
    pairs = list(zip(options, ids, strict=True))
    assert {ids for option, ids in pairs if option.temperature == 0} == {tuple(alone)}
    assert p_value([ids for option, ids in pairs if option.temperature > 0], exact) > ERROR_RATE


def test_the_same_seed_gives_the_same_output_beside_others(runner_and_llm):
    _, llm = runner_and_llm
    alone = list(itertools.chain(*(sample(llm, TREE, 1, seed=seed) for seed in range(5, 10))))
    crowd = sample(llm, TREE, 40, seed=5)
    assert crowd[0] == alone[0]
    assert len(set(crowd)) > 1
    assert sample(llm, TREE, 40, seed=5) == crowd


def test_top_p_and_penalties_run(runner_and_llm):
    """top-p is verified; a penalised request is vLLM's own and is not drafted for."""
    runner, llm = runner_and_llm
    before = runner.num_rounds
    sample(llm, TREE, 3, presence_penalty=0.5)
    assert runner.num_rounds == before
    assert sample(llm, TREE, 3, top_p=1e-6) == sample(llm, CHAIN, 3, top_p=1e-6)
    assert runner.num_rounds > before
