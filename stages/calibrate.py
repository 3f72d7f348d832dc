"""Stage calibrate: what the draft agrees on and what a step costs, from which arms are grown and foretold.

    python -m stages.calibrate

Answers questions that the arms do not measure, in one engine with the plugin, and writes

    results/calibration/ranks.json   the draft's rank of every token of the target's answers
    results/calibration/costs.json   milliseconds of a step, by batch size and kind of tree: CostModel

`auto` and `grown_...` in params.yaml and the report's predictions come from them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stages.calibration.answers import Answer, calibration_rows, record_answers
from stages.calibration.engine import max_step_tokens, open_engine, plan_engine
from stages.calibration.model import COSTS_FILE, FOLDER, RANKS_FILE, Calibration
from stages.calibration.timing import BatchCosts, time_prompts, time_steps
from stages.common import gsm8k, options
from stages.common.errors import run_cli
from stages.common.files import atomic_folder, write_json
from stages.common.params import Params
from treespec.acceptance import Recording
from treespec.tree import TokenTree
from treespec.tree_file import write_tree

NUM_TIMED_PROMPTS = 4
COUNTED_DEPTHS = 8


def main() -> None:
    flags = options.parser("stages.calibrate", __doc__)
    options.add_draft_flags(flags)
    arguments = flags.parse_args()
    params = options.read_params(arguments, options.draft_values(arguments))
    plan = plan_engine(params)
    inputs = options.read_inputs(arguments, params, plan)
    rows, held_out = calibration_rows(gsm8k.load_rows(arguments.gsm8k), params)
    inputs = replace(inputs, rows=rows)
    _, prompts = inputs.prompts(params)
    llm = open_engine(params, inputs)
    answers = record_answers(llm, params, prompts)
    contexts = timing_contexts(answers, llm.llm_engine.vllm_config.cache_config.block_size)
    room = params.engine.max_model_len - len(contexts[0]) - 1
    costs = time_steps(
        llm,
        contexts,
        batches=sorted({1, *params.engine.max_num_seqs}),
        max_tokens=min(max_step_tokens(params), room),
        rounds=params.calibration.rounds,
    )
    prompt_ms = time_prompts(llm, prompts[:NUM_TIMED_PROMPTS])
    head = {
        "device": inputs.environment["device_name"],
        "dtype": params.engine.dtype,
        "models": {role: model["reference"] for role, model in inputs.manifest.items()},
    }
    with atomic_folder(arguments.results / FOLDER) as folder:
        write_tree(folder / RANKS_FILE, head | ranks_fields(params, inputs.dataset_source, answers, held_out))
        write_json(folder / COSTS_FILE, head | costs_fields(costs, prompt_ms, len(contexts[0]), params))
    show(Calibration.read(arguments.results))


def timing_contexts(answers: list[Answer], block_size: int) -> list[list[int]]:
    """What stands before a timed step: prompts and half an answer, cut alike to whole blocks and a token,
    so that all but this token is cached."""
    texts = [answer.prompt_ids + answer.answer_ids for answer in answers]
    typical = np.median([len(answer.prompt_ids) + len(answer.answer_ids) / 2 for answer in answers])
    whole = max(1, round(typical / block_size)) * block_size + 1
    long_enough = [text[:whole] for text in texts if len(text) >= whole]
    return long_enough or [text[: min(map(len, texts))] for text in texts]


def ranks_fields(params: Params, source: str, answers: list[Answer], held_out: bool) -> dict[str, Any]:
    temperature = params.sampling.temperature[0]
    said = (
        f"the target's answers to {len(answers)} GSM8K test questions that {'no' if held_out else 'an'} arm"
    )
    recording = Recording([answer.ranks for answer in answers])
    counts, contexts = recording.by_depth(COUNTED_DEPTHS)
    return {
        "source": f"Measured: {said} answers, at temperature {temperature:g}; the draft teacher-forced.",
        "dataset_source": source,
        "held_out": held_out,
        "temperature": temperature,
        "conditional": [list(row) for row in recording.table.conditional],
        "by_depth": [
            {
                "after_first_choices": depth,
                "contexts": int(contexts[depth]),
                "counts": own.astype(int).tolist(),
            }
            for depth, own in enumerate(counts)
        ],
        "answers": [
            {"num_prompt_tokens": len(answer.prompt_ids), "ranks": answer.ranks} for answer in answers
        ],
    }


def costs_fields(
    costs: dict[int, BatchCosts], prompt_ms: dict[str, float], context: int, params: Params
) -> dict[str, Any]:
    return {
        "rounds": params.calibration.rounds,
        "context_tokens": context,
        "prompt_ms_per_token": prompt_ms,
        "batches": {str(batch): own.to_dict() for batch, own in costs.items()},
    }


def show(calibration: Calibration) -> None:
    """A line a batch size for people."""
    first = calibration.recording.table.marginals[0, 0]
    print(f"the draft's first choice is the target's token in {first:.1%} of the contexts")
    for batch in calibration.costs:
        times = {"none": calibration.ms_per_token(None, batch)}
        times |= {f"k={k}": calibration.ms_per_token(TokenTree.chain(k), batch) for k in (1, 3, 5)}
        print(
            f"batch {batch}: " + ", ".join(f"{name} {ms:.2f}" for name, ms in times.items()) + " ms a token"
        )


if __name__ == "__main__":
    run_cli(main)
