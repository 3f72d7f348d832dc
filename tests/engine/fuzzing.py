"""Random trees, requests and arrivals, and the loop that puts them to an engine.

A case is a batch: requests of all kinds that arrive and are aborted at drawn steps. An engine runs it step by
step, so the scheduler meets them mixed: prompts in chunks beside trees, preemption, caches that others fill.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from treespec.tree import TokenTree

MAX_MODEL_LEN = 256
SHARED = np.random.default_rng(99).integers(2, 128, 160).tolist()  # some prompts begin alike


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    tree: TokenTree | str | None  # "none": undrafted; None: the engine's own
    arrives: int  # at this step
    leaves: int | None  # it is aborted so many steps later
    options: dict[str, Any]

    @property
    def is_greedy(self) -> bool:
        return self.options["temperature"] == 0


@st.composite
def trees(draw, max_nodes: int) -> TokenTree:
    """Any tree: each node hangs on the path to the one before; bushy, deep and in between."""
    size = draw(st.integers(1, max_nodes))
    leaning = draw(st.sampled_from(["deep", "flat", "any"]))
    parents, path = [-1], [0]
    for node in range(1, size + 1):
        longest = len(path)
        if leaning == "deep":
            depth = draw(st.sampled_from([longest] * 9 + [max(1, longest - 2)]))
        else:
            depth = draw(st.integers(1, longest if leaning == "any" else min(3, longest)))
        path = path[:depth]
        parents.append(path[-1])
        path.append(node)
    return TokenTree(tuple(parents))


@st.composite
def requests(draw, max_nodes: int) -> Request:
    length = draw(st.one_of(st.integers(1, 40), st.integers(30, 130), st.integers(200, 254)))
    seed, shared = draw(st.integers(0, 9)), draw(st.sampled_from([0, 0, 17, 64, 130]))
    own = np.random.default_rng([seed, length]).integers(2, 128, length).tolist()
    prompt = (SHARED[:shared] + own)[: max(length, 1)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": draw(st.integers(1, 48))}
    if draw(st.booleans()):
        options["ignore_eos"] = True
    if draw(st.integers(0, 3)) == 0:
        options["stop_token_ids"] = draw(st.lists(st.integers(2, 127), min_size=1, max_size=6))
    kind = draw(st.sampled_from(["plain"] * 6 + ["penalised", "sampled"]))
    if kind == "penalised":  # left to vLLM's own sampler
        options["repetition_penalty"] = 1.3
    elif kind == "sampled":  # not compared: in the way of the others
        options["temperature"] = 1.0  # without a seed: vLLM on CPU ends with one whose prompt is cut
    tree = draw(st.one_of(trees(max_nodes), trees(max_nodes), st.sampled_from(["none", None])))
    leaves = draw(st.integers(1, 12)) if draw(st.integers(0, 7)) == 0 else None
    return Request(tuple(prompt), tree, draw(st.integers(0, 12)), leaves, options)


def batches(max_nodes: int) -> st.SearchStrategy[list[Request]]:
    return st.lists(requests(max_nodes), min_size=1, max_size=8)


def answer(llm: Any, batch: list[Request], drafted: bool) -> list[list[int]]:
    """Token ids of each request of `batch`, of an aborted one as far as it came."""
    from vllm import SamplingParams

    engine, found = llm.llm_engine, [[] for _ in batch]
    step, waiting, running = 0, dict(enumerate(batch)), {}
    while waiting or running:
        if not running:  # an idle engine would be waited for without end
            step = max(step, min(request.arrives for request in waiting.values()))
        for index in [index for index, request in waiting.items() if request.arrives <= step]:
            request = running[index] = waiting.pop(index)
            options = SamplingParams(**request.options, extra_args=_asked(request) if drafted else None)
            engine.add_request(f"{index}-{id(batch)}", {"prompt_token_ids": list(request.prompt)}, options)
        for output in engine.step():
            index = int(output.request_id.partition("-")[0])
            found[index] = list(output.outputs[0].token_ids)
            if output.finished:
                running.pop(index, None)
        step += 1
        for index, request in list(running.items()):
            if drafted and request.leaves is not None and step >= request.arrives + request.leaves:
                engine.abort_request([f"{index}-{id(batch)}"])
                del running[index]
    return found


def _asked(request: Request) -> dict[str, Any] | None:
    if request.tree is None:
        return None
    asked = request.tree if isinstance(request.tree, str) else list(request.tree.parents)
    return {"treespec": {"tree": asked}}


def check(batch: list[Request], drafted: list[list[int]], plain: list[list[int]], tally: Counter) -> None:
    """Every greedy request says what the baseline says, an aborted one as far as it came."""
    for request, ours, theirs in zip(batch, drafted, plain, strict=True):
        if not request.is_greedy:
            continue
        expected = theirs if request.leaves is None else theirs[: len(ours)]
        assert ours == expected, f"{request}\n{ours}\n{theirs}"
        tally["requests"] += 1
        tally["tokens"] += len(ours)
    tally["cases"] += 1
