"""What a draft is worth: how often it says what the target says, and what that saves.

Greedy chain speculation accepts a drafted token exactly where the draft's argmax, given the target's own
text, is the target's next token. So one teacher-forced pass over the target's greedy answers gives the
acceptance of every chain length, without speculating:

    matches = draft_matches(draft, vocabulary, texts)     # a list of booleans a text, one an answer token
    mean_acceptance_length(matches, 4)                    # tokens a step, the bonus token counted
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stages.distillation.answers import Text
from stages.distillation.generate import right_padded
from stages.distillation.model import Decoder, Vocabulary
from treespec.cost import CostModel
from treespec.tree import TokenTree

Matches = list[list[bool]]


def answer_positions(texts: list[Text], width: int, device: torch.device | str) -> Tensor:
    """Indices into [len(texts) * width] of the positions whose next token belongs to the answer."""
    ranges = [
        torch.arange(row * width + text.num_prompt_tokens - 1, row * width + len(text.token_ids) - 1)
        for row, text in enumerate(texts)
    ]
    return torch.cat(ranges).to(device)


@torch.no_grad()
def draft_matches(
    draft: Decoder,
    vocabulary: Vocabulary,
    texts: list[Text],
    batch_size: int = 16,
    allowed_ids: list[int] | None = None,  # a reduced vocabulary: the only tokens the draft may propose
) -> Matches:
    """For every text and answer token, whether the draft's argmax is that token."""
    device = vocabulary.head.device
    allowed = None if allowed_ids is None else torch.tensor(allowed_ids, device=device)
    head = vocabulary.head if allowed is None else vocabulary.head[allowed]
    matches = []
    for batch in batched(texts, batch_size):
        token_ids = right_padded([text.token_ids for text in batch], device)
        hidden = draft(vocabulary.embed(token_ids)).flatten(0, 1)
        hidden = hidden[answer_positions(batch, token_ids.shape[1], device)]
        proposed = torch.nn.functional.linear(hidden.to(head.dtype), head).argmax(dim=-1)
        proposed = proposed if allowed is None else allowed[proposed]
        answers = torch.tensor([token for text in batch for token in text.answer_ids], device=device)
        equal = (proposed == answers).cpu().split([len(text.answer_ids) for text in batch])
        matches += [row.tolist() for row in equal]
    return matches


def batched(texts: list[Text], size: int) -> Iterator[list[Text]]:
    """Batches of texts in the order given."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def greedy_agreement(matches: Matches) -> float:
    """Share of answer tokens that the draft would have proposed: acceptance at the first position."""
    return sum(map(sum, matches)) / sum(map(len, matches))


def mean_acceptance_length(matches: Matches, num_speculative_tokens: int) -> float:
    """Tokens a step of greedy chain speculation would have made of these texts, the bonus token counted.

    The target itself says the first token (prefill); every step then accepts the run of matches that follows,
    at most `num_speculative_tokens`, and adds the target's next token.
    """
    num_tokens = num_steps = 0
    for row in matches:
        position = 1
        while position < len(row):
            run = row[position : position + num_speculative_tokens]
            accepted = run.index(False) if False in run else len(run)
            position += accepted + 1
            num_steps += 1
        num_tokens += max(0, len(row) - 1)
    return num_tokens / num_steps if num_steps else 1.0


def draft_cost(draft: Decoder, target: Decoder, vocabulary: Vocabulary, num_rows: int | None) -> float:
    """Bytes a draft step reads over those a target step reads: layers, norm and logit rows.

    Decoding one sequence is bound by memory, so this is T_draft / T_target but for what every forward costs.
    """
    head, width = vocabulary.head.numel(), vocabulary.head.shape[1]
    layers, target_layers = (sum(p.numel() for p in model.parameters()) for model in (draft, target))
    return (layers + (head if num_rows is None else num_rows * width)) / (target_layers + head)


def best_predicted_chain(
    lengths: dict[int, float],  # mean acceptance length by number of speculative tokens
    cost_ratio: float,
    draft_overhead: float,
    step_overhead: float,
) -> tuple[int, float]:
    """The number of speculative tokens with the largest predicted speedup, and that speedup."""
    cost = CostModel({1: 1.0}, {1: cost_ratio + draft_overhead}, overhead_ms=step_overhead)
    speedups = {k: cost.speedup(TokenTree.chain(k), length) for k, length in lengths.items()}
    best = max(speedups, key=speedups.get)
    return best, speedups[best]
