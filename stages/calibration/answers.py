"""The target's own answers to questions that no arm measures, and the draft's rank of every token in them.

    answers = record_answers(llm, params, prompts)
    answers[0].ranks           # [0, 0, 3, -1, 0, ...], one an answer token

At the arms' first temperature. See stages.calibration.ranker for how the ranks are noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.calibration.engine import sampling
from stages.common import gsm8k
from stages.common.errors import UserError
from stages.common.params import Params
from treespec.tree import TokenTree

UNRANKED = 2  # tokens of an answer's last step, behind which nothing is drafted


@dataclass(frozen=True)
class Answer:
    prompt_ids: list[int]
    answer_ids: list[int]
    ranks: list[int]  # of the answer's tokens; -1: not in the draft's vocabulary


def calibration_rows(rows: list[gsm8k.Row], params: Params) -> tuple[list[gsm8k.Row], bool]:
    """The questions behind those that the arms answer, and whether there are enough of them.

    If not, the last ones of the split are taken, though the arms answer them, too.
    """
    first, count = params.dataset.num_prompts, params.calibration.num_prompts
    if first + count <= len(rows):
        return rows[first : first + count], True
    return rows[-count:], False


def record_answers(llm: Any, params: Params, prompts: list[list[int]]) -> list[Answer]:
    """One answer a prompt, in the order given. UserError where nothing was drafted."""
    settings = params.sampling
    limit = min(settings.max_tokens, params.engine.max_model_len - max(map(len, prompts)) - UNRANKED)
    options = [
        sampling(
            TokenTree.chain(1),
            temperature=settings.temperature[0],
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=None if settings.temperature[0] == 0 else settings.seed + index,
            max_tokens=limit + UNRANKED,
            stop=gsm8k.stop_strings(params.dataset.prompt_format),
        )
        for index in range(len(prompts))
    ]
    llm.collective_rpc("start_ranking")
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], options, use_tqdm=True)
    texts = llm.collective_rpc("stop_ranking")[0]
    answers = [Answer(prompt, ids[:limit], ranks[:limit]) for prompt, ids, ranks in texts]
    if not any(len(answer.ranks) > 1 for answer in answers):
        raise UserError("calibration", "no drafts", "answers of at least two tokens to questions of the test")
    return answers
