"""Target and draft fit each other and the machine before an engine starts; the manifest names both."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import VOCAB_SIZE, make_draft, make_llama

from stages.common.errors import UserError
from stages.common.files import read_json
from stages.common.manifest import build_manifest, check_memory, check_tensor_parallel, check_vocabularies
from stages.common.params import Engine, Models, load_params
from stages.common.references import open_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    make_llama(folder, num_layers=4)
    return folder


def test_models_that_number_their_tokens_differently_are_refused(target_folder, tmp_path):
    target = open_model("target", target_folder, None)
    make_llama(tmp_path / "swapped", swap=True)
    make_llama(tmp_path / "larger", vocab_size=VOCAB_SIZE + 1)
    check_vocabularies(target, target)
    with pytest.raises(UserError, match=r"token 'a': 69; expected id 68, as in target; 4 entries differ"):
        check_vocabularies(target, open_model("draft", tmp_path / "swapped", None))
    with pytest.raises(UserError, match=rf"vocab_size: {VOCAB_SIZE + 1}; expected {VOCAB_SIZE}"):
        check_vocabularies(target, open_model("draft", tmp_path / "larger", None))


def engine(**changes) -> Engine:
    standing = load_params(ROOT / "params.yaml").engine.model_dump() | {"max_model_len": 256}
    return Engine.model_validate({**standing, **changes})


def test_too_little_memory_and_uneven_heads_are_refused(target_folder):
    model = open_model("target", target_folder, None)
    check_memory(model, model, engine(kv_cache_gib=0.001))
    with pytest.raises(UserError, match=r"memory: '.* GiB'; expected 4096\.0 GiB for weights and KV cache"):
        check_memory(model, model, engine(kv_cache_gib=4096))
    check_tensor_parallel("engine.tensor_parallel_size", model, 4)
    with pytest.raises(UserError, match=r"tensor_parallel_size: 3; expected a divisor of the 4 attention"):
        check_tensor_parallel("engine.tensor_parallel_size", model, 3)


def test_the_manifest_holds_the_contract_and_is_the_same_again(target_folder, tmp_path):
    models = Models(target=f"path:{target_folder}", draft="prune:0,2")
    first = build_manifest(models, engine(), tmp_path)
    assert first == build_manifest(models, engine(), tmp_path)
    for entry in first.values():
        assert list(entry) == [
            "reference",
            "revision",
            "path",
            "config_sha256",
            "tokenizer_sha256",
            "weights_sha256",
            "weight_bytes",
            "pass_bytes",
            "num_parameters",
            "num_layers",
            "vocab_size",
        ]
    assert first["target"]["num_layers"] == 4
    assert first["draft"]["num_layers"] == 2
    assert first["draft"]["weight_bytes"] == 2 * first["draft"]["num_parameters"]
    assert first["target"]["weights_sha256"] != first["draft"]["weights_sha256"]


def test_a_distilled_draft_is_pinned_by_the_digest_of_what_was_distilled(target_folder, tmp_path):
    make_draft(tmp_path / "draft", target_folder)
    models = Models(target=f"path:{target_folder}", draft=f"distilled:{tmp_path / 'draft'}")
    first = build_manifest(models, engine(), tmp_path / "models")["draft"]
    assert (first["reference"], first["num_layers"]) == (models.draft, 1)
    assert first["path"] == str(tmp_path / f"models/path-{target_folder.name}-distilled-draft")
    make_draft(tmp_path / "draft", target_folder, layer=2)
    second = build_manifest(models, engine(), tmp_path / "models")["draft"]
    assert len(second["revision"]) == 64
    assert second["revision"] != first["revision"]
    assert second["weights_sha256"] != first["weights_sha256"]


def test_the_default_draft_belongs_to_the_default_target():
    models = load_params(ROOT / "params.yaml").models
    folder = ROOT / models.draft.removeprefix("distilled:")
    assert read_json(folder / "distill.json")["target"]["reference"] == models.target
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6


def test_every_rank_on_cpu_has_a_cache_and_its_own_whole_draft(target_folder):
    model = open_model("target", target_folder, None)
    ranks = engine(tensor_parallel_size=2, kv_cache_gib=2048)
    with pytest.raises(UserError, match=r"expected 4096\.0 GiB for weights and KV cache"):
        check_memory(model, model, ranks)
