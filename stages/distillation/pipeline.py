"""From tokenised questions to a draft's folder: answer, train every candidate, judge, keep the best.

    distill(settings, Path("models/target"), questions, Path("build/distill"), Path("models/draft"))

Resumes by itself: WORK/<fingerprint>/ holds the answers and the checkpoint of exactly these arguments.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.common.errors import UserError
from stages.common.files import read_json
from stages.distillation.acceptance import (
    best_predicted_chain,
    draft_cost,
    draft_matches,
    greedy_agreement,
    mean_acceptance_length,
)
from stages.distillation.answers import Prompts, Text, answer_round, rank_vocabulary
from stages.distillation.delta import embedding_sha256, write_delta
from stages.distillation.generate import generate
from stages.distillation.model import Decoder, DecoderConfig, Vocabulary, load_target, take_layers
from stages.distillation.train import Candidate, autocast, train

if TYPE_CHECKING:
    from stages.distillation.settings import Distill

REDUCED = (1024, 2048, 4096, 8192, 16384, 32768)  # sizes of a reduced vocabulary that are reported


@dataclass(frozen=True)
class Questions:
    """Prompts to train on and to judge by, and where all of it came from."""

    training: Prompts
    held_out: Prompts
    target_reference: str
    target_licence: str
    source: str
    command: str


@dataclass(frozen=True)
class Teacher:
    """The target as this run uses it."""

    config: DecoderConfig
    decoder: Decoder
    vocabulary: Vocabulary
    raw_config: dict[str, Any]
    stop_ids: set[int]

    @classmethod
    def load(cls, folder: Path, device: str) -> Teacher:
        """bfloat16 on CUDA, float32 on CPU. UserError without a CUDA device or a known family."""
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("distill.device", device, "cpu: torch sees no CUDA device")
        raw = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        stops = read_json(generation).get("eos_token_id") if generation.is_file() else None
        stops = raw.get("eos_token_id") if stops is None else stops
        stop_ids = set(stops) if isinstance(stops, list) else {stops} - {None}
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        return cls(*load_target(folder, dtype, device), raw, stop_ids)

    def answer(
        self, prompts: Prompts, temperature: float, generator: torch.Generator, max_new_tokens: int
    ) -> Prompts:
        model = (self.config, self.decoder, self.vocabulary)
        return generate(*model, prompts, max_new_tokens, self.stop_ids, temperature, generator)


def distill(
    settings: Distill,
    target_dir: Path,
    questions: Questions,
    work: Path,
    out: Path,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Make a draft and write it to `out` (see delta.py). Returns its record, the content of distill.json."""
    teacher = Teacher.load(target_dir, settings.device)
    embedding = embedding_sha256(teacher.vocabulary.embedding)
    texts, held_out = answer_all(settings, teacher, questions, work, embedding)
    settings_json = settings.model_dump(mode="json")
    # What only judges a draft is left out: another vocabulary finds the trained candidates again.
    training = {key: value for key, value in settings_json.items() if key not in ("vocabulary", "cost")}
    same_run = _fingerprint(training, embedding, questions.training, questions.held_out)
    drafts = [take_layers(teacher.decoder, teacher.config, shape) for shape in settings.shapes]
    candidates = train(
        teacher.decoder,
        teacher.vocabulary,
        drafts,
        texts,
        held_out,
        settings,
        work / f"training-{same_run}",
        deadline,
    )
    ranked = rank_vocabulary(texts)
    reports = judge_all(settings, teacher, candidates, held_out, ranked)
    index = max(range(len(reports)), key=lambda index: reports[index]["predicted_speedup"])
    record = {
        "target": {
            "reference": questions.target_reference,
            "licence": questions.target_licence,
            "embedding_sha256": embedding,
        },
        "settings": settings_json,
        "data": {"source": questions.source, "texts": len(texts), "held_out": len(held_out)},
        "chosen": reports[index],
        "candidates": reports,
        "environment": _environment(settings.device),
        "command": questions.command,
    }
    vocabulary = {"token_ids": ranked, "coverage": _coverage(held_out, ranked, settings.vocabulary)}
    write_delta(out, candidates[index].draft.state_dict(), teacher.raw_config, vocabulary, record)
    return record


def answer_all(
    settings: Distill, teacher: Teacher, questions: Questions, work: Path, embedding: str
) -> tuple[list[Text], list[Text]]:
    """The target's answers: every round for the training questions, the greedy one for the held-out ones."""
    answer = partial(teacher.answer, max_new_tokens=settings.max_new_tokens)
    how = (settings.sampling_temperature, settings.generation_batch_size, settings.seed, settings.device)

    def rounds(kind: str, prompts: Prompts, num_rounds: int) -> list[Text]:
        folder = work / f"{kind}-{_fingerprint(how, settings.max_new_tokens, embedding, prompts)}"
        return [
            text for index in range(num_rounds) for text in answer_round(folder, index, prompts, answer, *how)
        ]

    held_out = rounds("held-out", questions.held_out, 1)
    return rounds("training", questions.training, 1 + settings.sampled_answers), held_out


def judge_all(
    settings: Distill,
    teacher: Teacher,
    candidates: list[Candidate],
    held_out: list[Text],
    ranked: list[int],
) -> list[dict[str, Any]]:
    """Every candidate judged with the vocabulary it is to run with, and with others for comparison."""
    return [
        _judge_shape(settings, teacher, candidate, shape, held_out, ranked)
        for candidate, shape in zip(candidates, settings.shapes, strict=True)
    ]


def _judge_shape(
    settings: Distill,
    teacher: Teacher,
    candidate: Candidate,
    shape: tuple[int, ...],
    held_out: list[Text],
    ranked: list[int],
) -> dict[str, Any]:
    stored = copy.deepcopy(candidate.draft).bfloat16().float()  # the weights as write_delta rounds them
    sizes = [None, *_sizes(ranked, settings.vocabulary)]
    by_size = {size: _judge(settings, teacher, stored, held_out, size and ranked[:size]) for size in sizes}
    return {
        "layers_from": list(shape),
        **by_size[settings.vocabulary and min(settings.vocabulary, len(ranked))],
        "delta_bytes": 2 * sum(parameter.numel() for parameter in stored.parameters()),
        "history": candidate.history,
        "by_vocabulary": list(by_size.values()),
    }


def _judge(
    settings: Distill,
    teacher: Teacher,
    draft: Decoder,
    held_out: list[Text],
    allowed_ids: list[int] | None,
) -> dict[str, Any]:
    """Acceptance, cost and predicted speedup of a draft that reads these rows of the logit matrix."""
    vocabulary = teacher.vocabulary
    with autocast(vocabulary.head.device):
        matches = draft_matches(draft, vocabulary, held_out, allowed_ids=allowed_ids)
    lengths = {k: mean_acceptance_length(matches, k) for k in range(1, settings.cost.max_chain + 1)}
    num_rows = None if allowed_ids is None else len(allowed_ids)
    cost = draft_cost(draft, teacher.decoder, vocabulary, num_rows)
    overheads = (settings.cost.draft_overhead, settings.cost.step_overhead)
    best_chain, speedup = best_predicted_chain(lengths, cost, *overheads)
    return {
        "num_rows": num_rows or vocabulary.head.shape[0],
        "greedy_agreement": greedy_agreement(matches),
        "mean_acceptance_length": {str(k): length for k, length in lengths.items()},
        "cost_ratio": cost,
        "best_chain": best_chain,
        "predicted_speedup": speedup,
    }


def _sizes(ranked: list[int], wanted: int | None) -> list[int]:
    """Sizes of a reduced vocabulary worth a look, the wanted one among them, largest first."""
    sizes = {size for size in REDUCED if size < len(ranked)}
    if wanted:
        sizes.add(min(wanted, len(ranked)))
    return sorted(sizes, reverse=True)


def _coverage(texts: list[Text], ranked: list[int], wanted: int | None = None) -> dict[str, float]:
    """Share of the answers' tokens that are among the first n ranked ids, by n; the last n is all of them."""
    rank = {token: position for position, token in enumerate(ranked)}
    ranks = [rank.get(token, len(ranked)) for text in texts for token in text.answer_ids]
    sizes = sorted({*_sizes(ranked, wanted), len(ranked)})
    return {str(size): sum(r < size for r in ranks) / len(ranks) for size in sizes}


def _environment(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device_name": name, "torch": torch.__version__, "python": platform.python_version()}


def _fingerprint(*parts: Any) -> str:
    """A short digest of arguments: equal arguments find their own work again."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
