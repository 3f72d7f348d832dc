"""One pass over the prompts, and what is kept of every request: the rows of requests.parquet.

    runner = Runner(llm, params, prompts, rows, tokenizer.decode)
    passes = [runner.run(repeat, "chain k3-b1") for repeat in range(3)]
    write_requests(passes, folder / "requests.parquet")

A request's clock starts when the engine first schedules it, so waiting for a free place is not counted
against it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import gsm8k
from stages.common.errors import UserError
from stages.common.params import Params, override
from treespec.tree import TokenTree

NO_DRAFT = "none"  # as in treespec.vllm_plugin.requests, which imports vLLM
DRAFTED = "drafted"  # the mode of what is not NO_DRAFT
EXPLAINED = ("top2_gap", "runner_up_ids", "further_ids", "further_gaps")  # columns that explaining fills
WARM_UP_TOKENS = 32  # an answer: code is compiled, memory touched and clocks up by then
NUM_CANDIDATES = 5  # tokens a position that a later divergence may turn out to be a tie of


@dataclass(frozen=True)
class Pass:
    """One run over all prompts: wall time and one row a request."""

    repeat: int
    wall_time_s: float
    requests: list[dict[str, Any]]

    @property
    def num_output_tokens(self) -> int:
        return sum(request["num_output_tokens"] for request in self.requests)


@dataclass(frozen=True)
class Runner:
    """The prompts and how they are sampled, on one engine."""

    llm: Any
    params: Params
    prompts: list[list[int]]
    rows: list[gsm8k.Row]
    decode: Callable[[list[int]], str]

    def run(
        self,
        repeat: int,
        title: str | None,
        *,
        temperature: float | None = None,
        indices: Sequence[int] | None = None,
        tree: TokenTree | str | None = None,
        logprobs: int | None = None,
    ) -> Pass:
        """Answer prompts, all by default, at a temperature, params' first by default.

        With the plugin each is drafted along `tree`: the engine's own by default, NO_DRAFT for none. Without
        a title nothing is shown. UserError if a request fails.
        """
        if temperature is None:
            temperature = self.params.sampling.temperature[0]
        if indices is None:
            indices = range(len(self.prompts))
        prompts = [{"prompt_token_ids": self.prompts[index]} for index in indices]
        options = [self._options(repeat, index, temperature, tree, logprobs) for index in indices]
        if title is not None:
            print(title, file=sys.stderr)
        started = time.perf_counter()
        outputs = self.llm.generate(prompts, options, use_tqdm=title is not None)
        wall = time.perf_counter() - started
        rows = [self._row(index, repeat, output) for index, output in zip(indices, outputs, strict=True)]
        mode = NO_DRAFT if tree == NO_DRAFT else DRAFTED
        return Pass(repeat, wall, [row | {"temperature": temperature, "mode": mode} for row in rows])

    def warm_up(self, temperature: float | None = None, tree: TokenTree | str | None = None) -> None:
        """The first measure.warmup_prompts prompts, a few tokens each, outside the clock."""
        count = min(self.params.measure.warmup_prompts, len(self.prompts))
        if count:
            most = min(WARM_UP_TOKENS, self.params.sampling.max_tokens)
            short = replace(self, params=override(self.params, {"sampling.max_tokens": most}))
            short.run(0, "warm-up", temperature=temperature, indices=range(count), tree=tree)

    def explain(self, first: Pass) -> dict[str, Any]:
        """An uncounted pass like the baseline's `first`, with the forward timer.

        Of a greedy one `noted` has what else each position could have been, by which a later divergence can
        be told from a near-tie. And the seconds of the forward passes, and of the whole.
        """
        temperature = first.requests[0]["temperature"]
        logprobs = NUM_CANDIDATES if temperature == 0 else None
        title = f"uncounted: {'near-ties and ' if logprobs else ''}forward times"
        indices = [request["prompt_index"] for request in first.requests]
        self.llm.collective_rpc("start_forward_timer")
        explained = self.run(first.repeat, title, temperature=temperature, indices=indices, logprobs=logprobs)
        seconds = self.llm.collective_rpc("stop_forward_timer")[0]
        pairs = zip(first.requests, explained.requests, strict=True)
        noted = [runners_up(request, other) if logprobs else {} for request, other in pairs]
        return {"noted": noted, "forward_s": sum(seconds), "wall_time_s": explained.wall_time_s}

    def _options(
        self,
        repeat: int,
        index: int,
        temperature: float,
        tree: TokenTree | str | None,
        logprobs: int | None,
    ) -> Any:
        from vllm import SamplingParams

        sampling = self.params.sampling
        asked = list(tree.parents) if isinstance(tree, TokenTree) else tree
        return SamplingParams(
            temperature=temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=None if temperature == 0 else _request_seed(sampling.seed, repeat, index),
            max_tokens=sampling.max_tokens,
            stop=gsm8k.stop_strings(self.params.dataset.prompt_format),
            logprobs=logprobs,
            extra_args=None if asked is None else {"treespec": {"tree": asked}},
        )

    def _row(self, index: int, repeat: int, output: Any) -> dict[str, Any]:
        completion, stats = output.outputs[0], output.metrics
        token_ids = until_stop(completion.token_ids, completion.stop_reason, self.decode)
        if completion.finish_reason not in ("stop", "length") or not token_ids:
            raise UserError(
                f"prompt {index}", completion.finish_reason, "a finished answer: the arm is not written"
            )
        ttft = stats.first_token_ts - stats.scheduled_ts
        e2e = stats.last_token_ts - stats.scheduled_ts
        return {
            "prompt_index": index,
            "repeat": repeat,
            "num_prompt_tokens": len(output.prompt_token_ids),
            "num_output_tokens": len(token_ids),
            "output_token_ids": token_ids,
            "finish_reason": completion.finish_reason,
            "ttft_ms": ttft * 1e3,
            "tpot_ms": (e2e - ttft) * 1e3 / (len(token_ids) - 1) if len(token_ids) > 1 else None,
            "e2e_ms": e2e * 1e3,
            **judged(self.rows[index], completion.text),
            **{name: [] for name in EXPLAINED},
            "logprobs": completion.logprobs,
        }


def judged(row: gsm8k.Row, text: str) -> dict[str, Any]:
    """An answer's text and whether it is right: columns of requests.parquet."""
    expected = gsm8k.official_answer(row.answer)
    return {
        "text": text,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "answer": gsm8k.extract_answer(text),
        "expected": expected,
        "correct": gsm8k.is_correct(expected, text),
    }


def _request_seed(seed: int, repeat: int, index: int) -> int:
    """The same for a prompt in every arm, another for every prompt and repeat."""
    return int(np.random.SeedSequence([seed, repeat, index]).generate_state(1, np.uint32)[0])


def until_stop(
    token_ids: Sequence[int], stop_reason: int | str | None, decode: Callable[[list[int]], str]
) -> list[int]:
    """The ids up to the one that completes a stop string.

    vLLM looks for stop strings once a step, so with speculation the ids run on where the text ends; counted
    so, an arm would have more tokens than the baseline for the same answer.
    """
    kept = list(token_ids)
    if isinstance(stop_reason, str):
        while stop_reason in decode(kept[:-1]):
            kept.pop()
    return kept


def runners_up(request: dict[str, Any], explained: dict[str, Any]) -> dict[str, list]:
    """By position: how far the best two tokens lie apart, and the better one that was not taken.

    Then the next candidates, and how far each lies behind the best: more than two may tie. As far as both
    passes say the same, and at their first difference, if any; beyond it is another text.
    """
    noted: dict[str, list] = {name: [] for name in EXPLAINED}
    for taken, other, candidates in zip(
        request["output_token_ids"], explained["output_token_ids"], explained["logprobs"], strict=False
    ):
        best, second, *further = sorted(candidates.items(), key=lambda item: -item[1].logprob)
        noted["top2_gap"].append(best[1].logprob - second[1].logprob)
        noted["runner_up_ids"].append(second[0] if best[0] == taken else best[0])
        noted["further_ids"].append([token for token, _ in further])
        noted["further_gaps"].append([best[1].logprob - candidate.logprob for _, candidate in further])
        if taken != other:
            break
    return noted


def write_requests(passes: Sequence[Pass], path: Path, more: Sequence[str] = ()) -> None:
    """One row a request and repeat; `more` are columns that only some stages fill."""
    import pyarrow as pa
    import pyarrow.parquet

    fields = {
        **dict.fromkeys(("prompt_index", "repeat", "num_prompt_tokens", "num_output_tokens"), pa.int32()),
        "output_token_ids": pa.list_(pa.int32()),
        **dict.fromkeys(("text", "text_sha256", "finish_reason"), pa.string()),
        **dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms", "temperature"), pa.float64()),
        **dict.fromkeys(("answer", "expected"), pa.string()),
        "correct": pa.bool_(),
    }
    others = {
        "top2_gap": pa.list_(pa.float32()),
        "runner_up_ids": pa.list_(pa.int32()),
        "further_ids": pa.list_(pa.list_(pa.int32())),
        "further_gaps": pa.list_(pa.list_(pa.float32())),
        "mode": pa.string(),
        "group": pa.int32(),
        "group_wall_time_s": pa.float64(),
        **dict.fromkeys(("group_num_drafts", "group_num_accepted_tokens"), pa.int32()),
    }
    fields |= {name: others[name] for name in more}
    rows = [request for one in passes for request in one.requests]
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
