"""Any tree, any mix of requests, any scheduler's limits: token for token what stock vLLM says undrafted.

The default test tries some batches on one engine. `make fuzz-test` draws engines as well, for as long as
FUZZ_SECONDS says, and prints how many cases there were.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Client, running_engine
from fuzzing import MAX_MODEL_LEN, Request, answer, batches, check
from hypothesis import HealthCheck, Phase, given, settings

from treespec.tree import TokenTree

TIGHT = {  # prompts in chunks, trees cut by the budget, caches shared, sequences preempted
    "max_num_seqs": 4,
    "max_num_batched_tokens": 40,
    "enable_prefix_caching": True,
    "block_size": 16,
    "num_gpu_blocks_override": MAX_MODEL_LEN // 16 + 6,
}
WIDE = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 512,
    "enable_prefix_caching": False,
    "block_size": 32,
    "num_gpu_blocks_override": MAX_MODEL_LEN // 32 + 12,
}


@pytest.fixture(scope="module")
def baseline(tiny_target) -> Iterator[Any]:
    """Stock vLLM, room for everybody."""
    from vllm import LLM

    llm = LLM(
        model=str(tiny_target),
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=False,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def fuzz(
    baseline: Any,
    client: Client,
    max_nodes: int,
    examples: int,
    tally: Counter,
    deadline: float = float("inf"),
) -> None:
    """Put `examples` batches to both engines, fewer when the time is over."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=deadline == float("inf"),
        database=None,
        phases=[Phase.explicit, Phase.generate],  # an engine remembers: a shrunk case need not fail again
        suppress_health_check=list(HealthCheck),
    )
    @given(batch=batches(max_nodes))
    def same(batch: list[Request]) -> None:
        if time.monotonic() < deadline:
            client.llm.reset_prefix_cache()
            check(
                batch, answer(client.llm, batch, drafted=True), answer(baseline, batch, drafted=False), tally
            )

    preempted, before = client.metric("num_preemptions"), client.counters()
    same()
    tally["preemptions"] += client.metric("num_preemptions") - preempted
    counters = client.counters().since(before)
    tally["drafts"] += counters.num_drafts
    tally["accepted"] += counters.num_accepted_tokens


def said(tally: Counter) -> str:
    return ", ".join(f"{count} {name}" for name, count in tally.items())


def test_any_batch_is_answered_as_without_drafting(baseline, tiny_target, capsys) -> None:
    """The draft is the target: most is accepted, so that a wrong mask, position or slot would show."""
    tally = Counter()
    with running_engine(tiny_target, tiny_target, TokenTree.chain(16), **WIDE) as llm:
        fuzz(baseline, Client(llm), 16, 8, tally)
    with capsys.disabled():
        print(f" [{said(tally)}] ", end="")
    assert tally["cases"] == 8
    assert tally["accepted"] > 0


def drawn_limits(draw: random.Random) -> dict[str, Any]:
    block_size = draw.choice([16, 32])
    chunked = draw.random() < 0.8
    budget = draw.choice([33, 48, 64, 100, 256]) if chunked else draw.choice([256, 600])
    return {
        "max_num_seqs": draw.choice([1, 2, 4, 7]),
        "max_num_batched_tokens": budget,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": draw.random() < 0.6,
        "block_size": block_size,
        "num_gpu_blocks_override": MAX_MODEL_LEN // block_size + draw.choice([2, 4, 8, 40]),
    }


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_campaign(baseline, tiny_target, tiny_draft, capsys) -> None:
    """Engine after engine until FUZZ_SECONDS are over; FUZZ_SEED draws others."""
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", 420)), int(os.environ.get("FUZZ_SEED", 0))
    draw, tally = random.Random(seed), Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        limits, max_nodes = drawn_limits(draw) if tally else TIGHT, draw.choice([1, 3, 8, 16, 40])
        draft = draw.choice([tiny_draft, tiny_draft, tiny_target])
        with capsys.disabled():
            print(f"\n{draft.name}, {max_nodes} nodes, {limits}: ", end="", flush=True)
        with running_engine(tiny_target, draft, TokenTree.chain(max_nodes), **limits) as llm:
            tally["engines"] += 1
            fuzz(baseline, Client(llm), max_nodes, 60, tally, end)
        with capsys.disabled():
            print(said(tally), end="", flush=True)
    assert tally["cases"] > 0
