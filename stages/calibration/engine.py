"""The engine that calibration measures: the arms' own, with room for every tree that is asked of it.

    llm = open_engine(params, inputs)
    with decoding(llm, contexts, TokenTree.chain(3)):
        llm.llm_engine.step()          # one step of all sequences, prompts behind them

Prompts are cached, since every size is timed behind the same ones; answers are the target's all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from stages.common.engine import EnginePlan
from stages.common.inputs import Inputs
from stages.common.params import Params
from stages.common.passes import NO_DRAFT
from treespec.tree import MAX_NODES, TokenTree

RANKER = "stages.calibration.ranker.DraftRanker"
MIN_SEQUENCES = 8  # that answer at once, so that recording answers takes seconds
_request_ids = count()


def plan_engine(params: Params) -> EnginePlan:
    """UserError where no drafted arm could run either; costs nothing."""
    params = params.model_copy(
        update={"speculation": params.speculation.model_copy(update={"implementation": "treespec"})}
    )
    plan = EnginePlan.of(params, 1, TokenTree.chain(max_step_tokens(params) - 1))
    more = {
        "max_num_seqs": max(MIN_SEQUENCES, *params.engine.max_num_seqs),
        "enable_prefix_caching": True,
        "worker_extension_cls": RANKER,
    }
    return replace(plan, arguments=plan.arguments | more)


def open_engine(params: Params, inputs: Inputs) -> Any:
    """A vllm.LLM with both models loaded."""
    return plan_engine(params).start(inputs.path("target"), inputs.path("draft"))


def max_step_tokens(params: Params) -> int:
    """The most tokens of a step that can be timed: as asked, where the engine and its sequences allow it."""
    engine = params.engine
    limits = (params.calibration.max_step_tokens, MAX_NODES + 1, engine.max_num_batched_tokens)
    return max(2, min(limit for limit in (*limits, engine.max_model_len // 2) if limit))


def sampling(tree: TokenTree | None, **more: Any) -> Any:
    """Sampling parameters of a request that is drafted along `tree`, None for not at all."""
    from vllm import SamplingParams

    asked = NO_DRAFT if tree is None else list(tree.parents)
    return SamplingParams(extra_args={"treespec": {"tree": asked}}, **more)


@contextmanager
def decoding(llm: Any, contexts: Sequence[list[int]], tree: TokenTree | None) -> Iterator[None]:
    """One request a context, each past its prompt and none near its end; all gone when the block ends."""
    engine = llm.llm_engine
    waiting = {f"calibration-{next(_request_ids)}": context for context in contexts}
    requests = list(waiting)
    options = sampling(tree, temperature=0.0, max_tokens=None, ignore_eos=True)
    for request_id, context in waiting.items():
        engine.add_request(request_id, {"prompt_token_ids": context}, options)
    try:
        while waiting:
            for output in engine.step():
                waiting.pop(output.request_id, None)
        yield
    finally:
        engine.abort_request(requests)
