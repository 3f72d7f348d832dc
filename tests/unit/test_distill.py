"""A draft distilled from its target: the same mathematics as transformers, honest data, exact resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from stages.common.errors import UserError
from stages.common.gsm8k import read_parquet
from stages.distillation import train as training
from stages.distillation.acceptance import (
    best_predicted_chain,
    draft_matches,
    greedy_agreement,
    mean_acceptance_length,
)
from stages.distillation.answers import Text, answer_round
from stages.distillation.delta import assemble_draft
from stages.distillation.generate import generate
from stages.distillation.model import DecoderConfig, load_target, take_layers
from stages.distillation.pipeline import Questions, distill
from stages.distillation.questions import TRAIN_FILE, load_train_rows, split_rows
from stages.distillation.settings import Distill

torch.set_num_threads(1)
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large enough that greedy text varies
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PROMPTS = [[5, 6, 7], [9], [3, 1, 4, 1, 5, 9, 2, 6, 5], [30, 31], [11, 12, 13, 14], [8, 8]]


def save_model(folder: Path, kind: str = "llama", **sizes) -> Path:
    torch.manual_seed(0)
    config_type, model_type = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[kind]
    model = model_type(config_type(**{**SIZES, "tie_word_embeddings": True, **sizes}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # zero would hide a bias that is left out
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("target") / "model")


@pytest.fixture(scope="module")
def target(target_dir):
    return load_target(target_dir, torch.float32, "cpu")


def settings(**changes) -> Distill:
    values = {
        "shapes": [[0], [0, 3]],
        "vocabulary": None,
        "on_policy_prompts": 4,
        "holdout": 2,
        "sampled_answers": 1,
        "sampling_temperature": 0.8,
        "max_new_tokens": 24,
        "generation_batch_size": 3,
        "steps": 12,
        "batch_size": 4,
        "sequence_length": 64,
        "learning_rate": 0.003,
        "warmup": 2,
        "evaluate_every": 5,
        "seed": 0,
        "device": "cpu",
    }
    return Distill.model_validate({**values, **changes})


def make_texts(target) -> list[Text]:
    config, decoder, vocabulary = target
    answers = generate(config, decoder, vocabulary, PROMPTS, 24, {2})
    return [Text(p + a, len(p)) for p, a in zip(PROMPTS, answers, strict=True)]


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("llama", {"rope_scaling": LLAMA3_ROPE, "head_dim": 16}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"rope_theta": 1e6}),
    ],
)
def test_logits_and_greedy_answers_equal_those_of_transformers(tmp_path, kind, sizes):
    folder = save_model(tmp_path / kind, kind, **sizes)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config, decoder, vocabulary = load_target(folder, torch.float32, "cpu")
    token_ids = torch.randint(0, SIZES["vocab_size"], (3, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = vocabulary.logits(decoder(vocabulary.embed(token_ids)))
        torch.testing.assert_close(logits, reference(token_ids).logits, atol=1e-4, rtol=1e-4)

    answers = generate(config, decoder, vocabulary, PROMPTS, 20, {2})
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        alone = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=2,
        )
        assert answer == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma3"},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
    ],
)
def test_a_target_that_would_be_computed_wrongly_is_refused(change):
    raw = {**LlamaConfig(**SIZES).to_dict(), **change}
    with pytest.raises(UserError):
        DecoderConfig.from_hf(raw)


def test_training_never_sees_the_test_split(gsm8k_folder):
    test_file = gsm8k_folder / "main/test-00000-of-00001.parquet"
    if not (gsm8k_folder / TRAIN_FILE).is_file():
        pytest.skip("no train split here")
    rows, source = load_train_rows(["synthetic", f"path:{gsm8k_folder}"], test_file)
    train, held_out = split_rows(rows, 7000, 256, seed=0)
    assert source == f"path:{gsm8k_folder}"
    assert (len(train), len(held_out)) == (7000, 256)
    questions = [{row.question.strip().lower() for row in part} for part in (train, held_out)]
    test = {row.question.strip().lower() for row in read_parquet(test_file)}
    assert len(test) == 1319
    assert not questions[0] & questions[1]
    assert not test & (questions[0] | questions[1])
    assert split_rows(rows, 10, 256, seed=0) == (train[:10], held_out)


def test_test_questions_offered_as_train_data_are_refused(gsm8k_folder, tmp_path):
    test_file = gsm8k_folder / "main/test-00000-of-00001.parquet"
    (tmp_path / TRAIN_FILE).parent.mkdir()
    shutil.copyfile(test_file, tmp_path / TRAIN_FILE)
    with pytest.raises(UserError, match="1319 questions of the test split"):
        load_train_rows([f"path:{tmp_path}"], test_file)


def test_answers_made_before_a_kill_are_kept(target, tmp_path):
    config, decoder, vocabulary = target
    batches = []

    def answer(prompts, temperature, generator):
        batches.append(len(prompts))
        return generate(config, decoder, vocabulary, prompts, 8, {2}, temperature, generator)

    arguments = (tmp_path, 1, PROMPTS, answer, 0.9, 4, 0, "cpu")
    first = answer_round(*arguments)
    (tmp_path / "round-1/shard-00001.safetensors").unlink()
    again = answer_round(*arguments)
    assert batches == [4, 2, 2]  # only the lost shard was made anew, and sampled the same
    assert again == first
    assert [text.token_ids[: text.num_prompt_tokens] for text in again] == PROMPTS


@pytest.mark.parametrize("num_speculative_tokens", [1, 3, 5])
def test_teacher_forced_acceptance_is_that_of_speculative_decoding(target, num_speculative_tokens):
    config, decoder, vocabulary = target
    draft = take_layers(decoder, config, [0, 1, 2])  # lacks one layer: sometimes right
    texts = make_texts(target)
    matches = draft_matches(draft, vocabulary, texts)
    assert 0 < greedy_agreement(matches) < 1

    num_tokens = num_steps = 0
    for text in texts:
        done = text.num_prompt_tokens + 1
        while done < len(text.token_ids):
            drafted = text.token_ids[:done]
            for _ in range(num_speculative_tokens):
                drafted = [*drafted, next_token(draft, vocabulary, drafted)]
            accepted = 0
            while (
                accepted < num_speculative_tokens
                and done < len(text.token_ids)
                and drafted[done] == text.token_ids[done]
            ):
                accepted, done = accepted + 1, done + 1
            done += 1  # the target's own token
            num_steps += 1
        num_tokens += len(text.answer_ids) - 1
    assert mean_acceptance_length(matches, num_speculative_tokens) == num_tokens / num_steps


def next_token(draft, vocabulary, token_ids: list[int]) -> int:
    with torch.no_grad():
        return int(vocabulary.logits(draft(vocabulary.embed(torch.tensor([token_ids]))))[0, -1].argmax())


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=40), min_size=1, max_size=5))
def test_longer_chains_never_accept_less(matches):
    lengths = [mean_acceptance_length(matches, k) for k in range(1, 8)]
    assert lengths == sorted(lengths)
    assert all(1 <= length <= k + 1 for k, length in enumerate(lengths, start=1))


def test_a_dear_draft_speculates_less():
    lengths = {k: sum(0.7**i for i in range(k + 1)) for k in range(1, 9)}
    cheap, dear = (best_predicted_chain(lengths, ratio, 0.0, 0.0) for ratio in (0.05, 0.3))
    assert cheap[0] > dear[0]
    assert cheap[1] > dear[1] > 1


def test_a_reduced_vocabulary_proposes_only_its_own_tokens(target):
    config, decoder, vocabulary = target
    texts = make_texts(target)
    draft = take_layers(decoder, config, range(4))  # the target itself: always right
    assert greedy_agreement(draft_matches(draft, vocabulary, texts)) == 1
    used = sorted({token for text in texts for token in text.answer_ids})
    kept = used[: len(used) // 2]
    matches = draft_matches(draft, vocabulary, texts, allowed_ids=kept)
    assert [flag for row in matches for flag in row] == [
        token in kept for text in texts for token in text.answer_ids
    ]


def test_the_loss_is_least_where_draft_and_target_agree():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    other = logits.roll(1, dims=1)
    assert training.distillation_loss(logits, logits, 2.0, 0.0).abs() < 1e-6
    assert training.distillation_loss(other, logits, 2.0, 0.0) > 0.1
    by_hand = (logits.softmax(-1) * (logits.log_softmax(-1) - other.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(training.distillation_loss(other, logits, 1.0, 0.0), by_hand)


def test_training_raises_held_out_acceptance(target, tmp_path):
    config, decoder, vocabulary = target
    texts = make_texts(target)
    [candidate] = training.train(
        decoder,
        vocabulary,
        [take_layers(decoder, config, [0, 3])],
        texts,
        texts,
        settings(steps=80, learning_rate=0.01, evaluate_every=40),
        tmp_path,
    )
    first, *_, last = candidate.history
    assert last["greedy_agreement"] > first["greedy_agreement"] + 0.3
    assert last["mean_acceptance_length"] > first["mean_acceptance_length"] + 0.5


def test_a_killed_training_goes_on_to_the_same_weights(target, tmp_path, monkeypatch):
    config, decoder, vocabulary = target
    texts = make_texts(target)

    def run(folder: Path):
        drafts = [take_layers(decoder, config, shape) for shape in ([0], [0, 3])]
        return training.train(decoder, vocabulary, drafts, texts, texts, settings(), folder)

    whole = run(tmp_path / "whole")
    step, steps_done = training._step, []

    def killed_at_the_eighth(*arguments):
        steps_done.append(1)
        if len(steps_done) == 8:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(training, "_step", killed_at_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    resumed = run(tmp_path / "killed")
    assert len(steps_done) == 8 + 12 - 5  # it went on from the checkpoint of step 5
    for one, other in zip(whole, resumed, strict=True):
        assert one.history == other.history
        for name, weight in one.draft.state_dict().items():
            assert torch.equal(weight, other.draft.state_dict()[name]), name


def distil(target_dir: Path, folder: Path, **changes) -> tuple[Path, dict]:
    questions = Questions(PROMPTS[:4], PROMPTS[4:], "path:tiny", "Apache-2.0", "path:here", "python -m ...")
    record = distill(settings(**changes), target_dir, questions, folder / "work", folder / "draft")
    return folder / "draft", record


@pytest.fixture(scope="module")
def distilled(target_dir, tmp_path_factory):
    return distil(target_dir, tmp_path_factory.mktemp("distilled"), vocabulary=20)


def test_the_draft_holds_only_what_differs_and_says_how_good_it_is(distilled):
    folder, record = distilled
    chosen = record["chosen"]
    tensors = load_file(folder / "model.safetensors")
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    assert {name for name in tensors if not name.startswith("model.layers.")} == {"model.norm.weight"}
    assert len(layers) == len(chosen["layers_from"])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == len(layers)
    assert chosen == max(record["candidates"], key=lambda row: row["predicted_speedup"])
    for candidate in record["candidates"]:
        assert [judged["num_rows"] for judged in candidate["by_vocabulary"]] == [61, 20]
        assert candidate.items() >= candidate["by_vocabulary"][1].items()  # distill.vocabulary is 20
    assert json.loads((folder / "distill.json").read_text()) == record
    vocabulary = json.loads((folder / "draft_vocabulary.json").read_text())
    assert len(set(vocabulary["token_ids"])) == len(vocabulary["token_ids"]) >= chosen["num_rows"]
    card, agreement = (folder / "README.md").read_text(), f"{chosen['greedy_agreement']:.1%}"
    assert f"with 20\nlogit rows: the draft proposes the target's next token in **{agreement}**" in card
    assert f"| **{chosen['layers_from']}** | **20** |" in card
    assert "path:tiny" in card


def test_an_assembled_draft_is_a_model_that_transformers_loads(distilled, target_dir, tmp_path):
    assert_assembled(*distilled, target_dir, tmp_path / "whole")


@pytest.mark.parametrize("tied", [True, False])
def test_a_qwen2_target_gets_a_draft_too(tmp_path, tied):
    """With its biases, and with a head of its own."""
    target_dir = save_model(tmp_path / "qwen2", "qwen2", tie_word_embeddings=tied)
    assert_assembled(*distil(target_dir, tmp_path, steps=3, warmup=1), target_dir, tmp_path / "whole")


def assert_assembled(folder: Path, record: dict, target_dir: Path, whole: Path) -> None:
    """transformers computes with the assembled draft what was trained."""
    model = AutoModelForCausalLM.from_pretrained(
        assemble_draft(folder, target_dir, whole), dtype=torch.float32
    )
    config, decoder, vocabulary = load_target(target_dir, torch.float32, "cpu")
    draft = take_layers(decoder, config, record["chosen"]["layers_from"])
    weights = load_file(folder / "model.safetensors")
    draft.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    token_ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        expected = vocabulary.logits(draft(vocabulary.embed(token_ids)))
        torch.testing.assert_close(model.eval()(token_ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_draft_refuses_another_target(distilled, tmp_path):
    other = save_model(tmp_path / "other", initializer_range=0.2)
    with pytest.raises(UserError, match="path:tiny"):
        assemble_draft(distilled[0], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [{"shapes": [[0], [0]]}, {"warmup": 12}, {"shapes": [[]]}, {"device": "tpu"}, {"learning_rates": 1}],
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises((UserError, ValueError)):
        settings(**change)


def test_layers_that_the_target_lacks_are_refused(target):
    config, decoder, _ = target
    with pytest.raises(UserError, match=r"0\.\.3"):
        take_layers(decoder, config, [0, 4])
    assert take_layers(decoder, config, [3]).config == replace(config, num_layers=1)
