"""The target's own answers, in batches: the text a draft is trained on and judged by.

    answers = generate(config, target, vocabulary, prompts, max_new_tokens=192, stop_ids={2})

Greedy unless a temperature is given. An answer keeps its stop token: a draft must propose that one too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.distillation.model import Decoder, DecoderConfig, KeyValueCache, Vocabulary

CHECK_EVERY = 16  # steps between two looks at whether all have stopped; each look waits for the device


def right_padded(sequences: list[list[int]], device: torch.device | str) -> Tensor:
    """Token ids [len(sequences), longest], zeros behind the shorter ones."""
    longest = max(map(len, sequences))
    rows = [sequence + [0] * (longest - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)


@torch.inference_mode()
def generate(
    config: DecoderConfig,
    target: Decoder,
    vocabulary: Vocabulary,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """One answer a prompt, at most `max_new_tokens` long, its stop token included."""
    device = vocabulary.embedding.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    token_ids = right_padded(prompts, device)
    cache = KeyValueCache(config, len(prompts), token_ids.shape[1] + max_new_tokens, vocabulary.embedding)
    stops = torch.tensor(sorted(stop_ids), device=device)
    hidden = target(vocabulary.embed(token_ids), cache=cache)
    hidden = hidden[torch.arange(len(prompts), device=device), lengths - 1]  # [batch, hidden]
    answers, stopped = [], torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        token = choose(vocabulary.logits(hidden), temperature, generator)  # [batch]
        answers.append(token)
        stopped |= torch.isin(token, stops)
        if step + 1 == max_new_tokens or ((step + 1) % CHECK_EVERY == 0 and stopped.all()):
            break
        positions = (lengths + step)[:, None]
        hidden = target(vocabulary.embed(token[:, None]), positions, cache)[:, 0]
    return [until_stop(row, stop_ids) for row in torch.stack(answers, dim=1).tolist()]


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """The next token of each row of `logits` [batch, vocab]."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits.float() / temperature).softmax(dim=-1)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def until_stop(token_ids: list[int], stop_ids: set[int]) -> list[int]:
    for position, token in enumerate(token_ids):
        if token in stop_ids:
            return token_ids[: position + 1]
    return token_ids
