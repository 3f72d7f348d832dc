"""The calibration as it is used: what a tree yields and costs, and how long a whole arm will take.

    calibration = Calibration.read(Path("results"))
    calibration.tokens_per_step(TokenTree.chain(3))            # replayed along the recorded ranks
    calibration.ms_per_token(TokenTree.chain(3), batch_size=4) # while all four sequences decode
    calibration.arm_ms_per_token(TokenTree.chain(3), 4, 8)     # eight prompts, four at once, prompts included
    calibration.arm_draws(TokenTree.chain(3), 4, 8, 1000, 0)   # the same of eight questions drawn at random

Files: results/calibration/ranks.json and costs.json, written by stages.calibrate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.calibration.timing import BatchCosts
from stages.common.errors import UserError
from stages.common.files import read_json
from treespec.acceptance import Recording
from treespec.tree import TokenTree

FOLDER = "calibration"
RANKS_FILE, COSTS_FILE = "ranks.json", "costs.json"


@dataclass(frozen=True)
class Calibration:
    recording: Recording
    num_prompt_tokens: tuple[int, ...]  # of the recorded answers
    costs: Mapping[int, BatchCosts]  # by sequences at once, ascending
    prompt_ms: Mapping[str, float]  # a prompt token: none | drafted

    @classmethod
    def read(cls, results: Path) -> Calibration:
        """UserError where there is none, or none that can be read."""
        folder = results / FOLDER
        try:
            return cls.from_dicts(read_json(folder / RANKS_FILE), read_json(folder / COSTS_FILE))
        except FileNotFoundError as error:
            expected = "a calibration; run `python -m stages.calibrate` first"
            raise UserError("calibration", str(error.filename), expected) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(str(folder), str(error), "what stages.calibrate writes; run it again") from error

    @classmethod
    def from_dicts(cls, ranks: Mapping[str, Any], costs: Mapping[str, Any]) -> Calibration:
        batches = {int(batch): BatchCosts.from_dict(own) for batch, own in costs["batches"].items()}
        answers = [answer for answer in ranks["answers"] if len(answer["ranks"]) > 1]
        return cls(
            Recording([answer["ranks"] for answer in answers], str(ranks["source"])),
            tuple(int(answer["num_prompt_tokens"]) for answer in answers),
            dict(sorted(batches.items())),
            {name: float(ms) for name, ms in costs["prompt_ms_per_token"].items()},
        )

    def tokens_per_step(self, tree: TokenTree | None) -> float:
        return 1.0 if tree is None else self.recording.tokens_per_step(tree)

    def step_ms(self, tree: TokenTree | None, batch_size: int) -> float:
        """Between two measured batch sizes their mean, weighed by nearness."""
        times = [costs.step_ms(tree, batch) for batch, costs in self.costs.items()]
        return float(np.interp(batch_size, list(self.costs), times))

    def ms_per_token(self, tree: TokenTree | None, batch_size: int) -> float:
        """What one sequence waits for a token while `batch_size` of them decode."""
        return self.step_ms(tree, batch_size) / self.tokens_per_step(tree)

    def arm_ms_per_token(self, tree: TokenTree | None, max_num_seqs: int, num_prompts: int) -> float:
        """Wall time over output tokens of an arm of so many prompts, `max_num_seqs` at once.

        The recorded answers stand in for the arm's, in groups of its size: prompts are read one after
        another, and the last sequences run in a batch that is no longer full.
        """
        count = len(self.recording.answers)
        groups = [
            [index % count for index in range(first, first + num_prompts)]
            for first in range(0, max(count - num_prompts, 0) + 1, num_prompts)
        ]
        total_ms, num_tokens = np.sum(self._arms(tree, max_num_seqs, groups), axis=0)
        return float(total_ms / num_tokens)

    def arm_draws(
        self, tree: TokenTree | None, max_num_seqs: int, num_prompts: int, draws: int, seed: int
    ) -> np.ndarray:
        """`arm_ms_per_token` of so many arms, each of recorded answers drawn at random: how far chance alone
        may take an arm of few questions. float64 [draws]"""
        count = len(self.recording.answers)
        drawn = np.random.default_rng(seed).integers(count, size=(draws, num_prompts))
        total_ms, num_tokens = np.transpose(self._arms(tree, max_num_seqs, drawn.tolist()))
        return total_ms / num_tokens

    def _arms(
        self, tree: TokenTree | None, max_num_seqs: int, groups: Sequence[Sequence[int]]
    ) -> list[tuple[float, int]]:
        """Milliseconds and output tokens of arms that answer the recorded questions of each group."""
        answers = self.recording.answers
        steps = [len(one) - 1 for one in answers] if tree is None else self.recording.steps(tree)
        prompt_ms = self.prompt_ms["none" if tree is None else "drafted"]
        step_ms = [0.0, *(self.step_ms(tree, running) for running in range(1, max_num_seqs + 1))]
        return [
            (
                prompt_ms * sum(self.num_prompt_tokens[index] for index in group)
                + _decoding_ms([steps[index] for index in group], step_ms),
                sum(len(answers[index]) for index in group),
            )
            for group in groups
        ]


def _decoding_ms(steps: list[int], step_ms: list[float]) -> float:
    """All sequences' steps, the next sequence starting where one ends; `step_ms` by sequences running."""
    total, waiting, running = 0.0, list(steps), []
    while waiting or running:
        while waiting and len(running) < len(step_ms) - 1:
            running.append(waiting.pop(0))
        done = min(running)
        total += done * step_ms[len(running)]
        running = [left - done for left in running if left > done]
    return total
