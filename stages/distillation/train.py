"""Distillation: every candidate draft learns the target's distribution over the target's own answers.

The loss of a position (Hinton et al. 1503.02531), t the KL temperature:

    t^2 KL(softmax(target / t) || softmax(draft / t)) + w * cross_entropy(draft, argmax of target)

Only positions that predict an answer token count. One pass of the target teaches all candidates. Writes
FOLDER/checkpoint.pt at every evaluation; a later call with the same arguments goes on from there and ends
with the same weights as an uninterrupted one: to the bit on CPU, closely on CUDA, whose attention kernels sum
in no fixed order.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from stages.common.files import atomic_path
from stages.distillation.acceptance import (
    answer_positions,
    draft_matches,
    greedy_agreement,
    mean_acceptance_length,
)
from stages.distillation.answers import Text
from stages.distillation.generate import right_padded
from stages.distillation.model import Decoder, Vocabulary

if TYPE_CHECKING:  # pydantic is not needed to train
    from stages.distillation.settings import Distill

JUDGED_CHAIN = 4  # speculative tokens of the acceptance length that picks the best checkpoint
GRADIENT_NORM = 1.0
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01
SORT_WINDOW = 16  # batches among which texts are sorted by length, to pad little


@dataclass
class Candidate:
    """One draft in training, its optimizer and its best weights so far."""

    draft: Decoder
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def judge(self, step: int, vocabulary: Vocabulary, held_out: list[Text]) -> None:
        """Note the held-out acceptance, and keep the weights if it is the best yet."""
        matches = draft_matches(self.draft, vocabulary, held_out)
        length = mean_acceptance_length(matches, JUDGED_CHAIN)
        if not self.history or length > max(row["mean_acceptance_length"] for row in self.history):
            self.best = copy.deepcopy(self.draft.state_dict())
        self.history.append(
            {
                "step": step,
                "greedy_agreement": greedy_agreement(matches),
                "mean_acceptance_length": length,
            }
        )

    def state(self) -> dict[str, Any]:
        parts = {"draft": self.draft.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "best": self.best, "history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        self.draft.load_state_dict(state["draft"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.history = state["best"], state["history"]


def train(
    target: Decoder,
    vocabulary: Vocabulary,
    drafts: list[Decoder],
    texts: list[Text],
    held_out: list[Text],
    settings: Distill,
    folder: Path,
    deadline: float | None = None,  # time.monotonic() at which to stop early
) -> list[Candidate]:
    """Train `drafts` side by side for `settings.steps`; each ends with its most accepted weights."""
    candidates = [Candidate(draft, _optimizer(draft, settings)) for draft in drafts]
    checkpoint = folder / "checkpoint.pt"
    start = _resume(checkpoint, candidates, vocabulary.head.device)
    texts = [_cut(text, settings.sequence_length) for text in texts]
    texts = [text for text in texts if text.answer_ids]
    batches = _batches([len(text.token_ids) for text in texts], settings.batch_size, settings.seed, start)
    precision = autocast(vocabulary.head.device)
    with precision, _deterministic(), tqdm(total=settings.steps, initial=start, unit="step") as bar:
        if not start:
            for candidate in candidates:
                candidate.judge(0, vocabulary, held_out)
        for step in range(start, settings.steps):
            batch = [texts[index] for index in next(batches)]
            losses = _step(target, vocabulary, candidates, batch, step, settings)
            bar.update()
            last = step + 1 == settings.steps or (deadline is not None and time.monotonic() > deadline)
            if last or (step + 1) % settings.evaluate_every == 0:
                for candidate in candidates:
                    candidate.judge(step + 1, vocabulary, held_out)
                _save(checkpoint, step + 1, candidates)
                bar.set_postfix_str(_progress(losses, candidates))
            if last:
                break
    for candidate in candidates:
        candidate.draft.load_state_dict(candidate.best)
    return candidates


def _step(
    target: Decoder,
    vocabulary: Vocabulary,
    candidates: list[Candidate],
    batch: list[Text],
    step: int,
    settings: Distill,
) -> Tensor:
    """One update of every candidate on the same batch; their losses [candidates], left on the device."""
    device = vocabulary.head.device
    token_ids = right_padded([text.token_ids for text in batch], device)
    positions = answer_positions(batch, token_ids.shape[1], device)
    embedded = vocabulary.embed(token_ids)
    with torch.no_grad():
        target_logits = vocabulary.logits(target(embedded).flatten(0, 1)[positions])  # [answer tokens, vocab]
    losses = []
    for candidate in candidates:
        logits = vocabulary.logits(candidate.draft(embedded).flatten(0, 1).index_select(0, positions))
        loss = distillation_loss(
            logits, target_logits, settings.loss.kl_temperature, settings.loss.hard_label_weight
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(candidate.draft.parameters(), GRADIENT_NORM)
        for group in candidate.optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        candidate.optimizer.step()
        candidate.optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def distillation_loss(
    draft_logits: Tensor, target_logits: Tensor, temperature: float, hard_label_weight: float
) -> Tensor:
    """Mean over positions of the loss above; both logits [positions, vocab], taken to float32."""
    draft_logits, target_logits = draft_logits.float(), target_logits.float()
    loss = temperature**2 * F.kl_div(
        (draft_logits / temperature).log_softmax(dim=-1),
        (target_logits / temperature).softmax(dim=-1),
        reduction="batchmean",
    )
    if hard_label_weight:
        loss = loss + hard_label_weight * F.cross_entropy(draft_logits, target_logits.argmax(dim=-1))
    return loss


def learning_rate(step: int, settings: Distill) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrix products on CUDA, float32 on CPU.

    Uncached: the cache lives as long as the context and would go on using the weights of its first step.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels inside; where torch does not use one (attention on CUDA), it warns."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # gigabytes of logits, all written anyway
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def _batches(lengths: list[int], batch_size: int, seed: int, skip: int) -> Iterator[list[int]]:
    """Endless batches of indices from batch `skip` on; every epoch is shuffled by a seed of its own."""
    batch_size = min(batch_size, len(lengths))
    per_epoch = len(lengths) // batch_size
    epoch, offset = divmod(skip, per_epoch)
    while True:
        shuffle = random.Random(f"{seed}/{epoch}")
        order = shuffle.sample(range(len(lengths)), per_epoch * batch_size)
        window = batch_size * SORT_WINDOW
        order = [
            index
            for start in range(0, len(order), window)
            for index in sorted(order[start : start + window], key=lengths.__getitem__)
        ]
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        yield from shuffle.sample(batches, per_epoch)[offset:]
        epoch, offset = epoch + 1, 0


def _optimizer(draft: Decoder, settings: Distill) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        draft.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
    )


def _cut(text: Text, length: int) -> Text:
    return Text(text.token_ids[:length], text.num_prompt_tokens)


def _save(path: Path, step: int, candidates: list[Candidate]) -> None:
    with atomic_path(path) as temporary:
        torch.save({"step": step, "candidates": [candidate.state() for candidate in candidates]}, temporary)


def _resume(path: Path, candidates: list[Candidate], device: torch.device) -> int:
    """Take up the checkpoint if there is one; the number of steps already done."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=device, weights_only=True)
    for candidate, state in zip(candidates, saved["candidates"], strict=True):
        candidate.restore(state)
    return saved["step"]


def _progress(losses: Tensor, candidates: list[Candidate]) -> str:
    parts = [
        f"{len(candidate.draft.layers)} layers: loss {loss:.3f}, agrees "
        f"{candidate.history[-1]['greedy_agreement']:.1%}, "
        f"{candidate.history[-1]['mean_acceptance_length']:.2f} tokens a step"
        for loss, candidate in zip(losses.tolist(), candidates, strict=True)
    ]
    return "; ".join(parts)
