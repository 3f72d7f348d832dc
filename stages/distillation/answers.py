"""The target's answers in shards: what was answered before a kill is not answered again.

Round 0 is greedy; round n > 0 samples, with a seed of its own a shard. A shard is one batch of prompts of
like length:

    FOLDER/round-0/shard-00003.safetensors
        prompt_index int32 [n]; answer_lengths int32 [n]; answer_ids int32 [sum of answer_lengths]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from stages.common.files import atomic_path

Prompts = list[list[int]]
AnswerBatch = Callable[[Prompts, float, torch.Generator], list[list[int]]]


@dataclass(frozen=True)
class Text:
    """A prompt and the target's answer to it, as one list of token ids."""

    token_ids: list[int]
    num_prompt_tokens: int

    @property
    def answer_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


def answer_round(
    folder: Path,
    round_index: int,
    prompts: Prompts,
    answer: AnswerBatch,  # prompts, temperature, generator -> answers
    temperature: float,
    batch_size: int,
    seed: int,
    device: str,
) -> list[Text]:
    """Every prompt answered once, greedily in round 0 and at `temperature` in the others; in prompt order."""
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts: dict[int, Text] = {}
    starts = range(0, len(prompts), batch_size)
    for shard, start in enumerate(tqdm(starts, desc=f"answers, round {round_index}", unit="shard")):
        path = folder / f"round-{round_index}" / f"shard-{shard:05d}.safetensors"
        if not path.exists():
            chosen = by_length[start : start + batch_size]
            generator = torch.Generator(device).manual_seed(_seed(seed, round_index, shard))
            answers = answer(
                [prompts[index] for index in chosen], temperature if round_index else 0.0, generator
            )
            _write_shard(path, chosen, answers)
        for index, answer_ids in _read_shard(path):
            texts[index] = Text(prompts[index] + answer_ids, len(prompts[index]))
    return [texts[index] for index in range(len(prompts))]


def rank_vocabulary(texts: list[Text]) -> list[int]:
    """Token ids of the answers, most frequent first (ties: smaller id first)."""
    ids = torch.tensor([token for text in texts for token in text.answer_ids])
    tokens, counts = torch.unique(ids, return_counts=True)
    return tokens[torch.argsort(counts, descending=True, stable=True)].tolist()


def _write_shard(path: Path, prompt_index: list[int], answers: list[list[int]]) -> None:
    tensors = {
        "prompt_index": prompt_index,
        "answer_lengths": [len(answer) for answer in answers],
        "answer_ids": [token for answer in answers for token in answer],
    }
    with atomic_path(path) as temporary:
        save_file({key: torch.tensor(value, dtype=torch.int32) for key, value in tensors.items()}, temporary)


def _read_shard(path: Path) -> list[tuple[int, list[int]]]:
    shard = load_file(path)
    answers = shard["answer_ids"].split(shard["answer_lengths"].tolist())
    return list(zip(shard["prompt_index"].tolist(), (answer.tolist() for answer in answers), strict=True))


def _seed(*parts: int) -> int:
    """A seed for these numbers, unlike that of any other numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
