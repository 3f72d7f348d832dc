"""Every mistake in a params file is one clear line that names the field, and nothing else gets through."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.errors import UserError
from stages.common.params import Params, load_params, override, parse_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # tree names are looked up in trees/


DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def changed(field: str, value):
    raw = copy.deepcopy(DEFAULT)
    *blocks, key = field.split(".")
    section = raw
    for block in blocks:
        section = section[block]
    section[key] = value
    return raw


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))])
def test_the_files_we_ship_are_valid(path):
    assert isinstance(load_params(path), Params)


def test_the_classic_profile_is_the_classic_experiment():
    params = load_params(ROOT / "profiles/llama-3.3-70b.yaml")
    assert "Llama-3.3-70B-Instruct" in params.models.target
    assert "Llama-3.1-8B-Instruct" in params.models.draft
    assert (params.engine.tensor_parallel_size, params.engine.draft_tensor_parallel_size) == (4, 1)
    assert 96 in params.engine.max_num_seqs
    assert 24 in params.speculation.chain.num_speculative_tokens
    assert (params.dataset.num_prompts, params.sampling.max_tokens) == (20, 256)
    tree = params.tree("mc_sim_8b_512")
    assert (tree.num_nodes, tree.depth) == (512, 24)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("engine.max_num_seqs", 4, "engine.max_num_seqs: 4; expected a list"),
        ("engine.max_num_seqs", [], "engine.max_num_seqs: []; expected a list that is not empty"),
        ("engine.max_num_seqs", [0], "engine.max_num_seqs.0: 0; expected at least 1"),
        ("engine.max_num_seqs", [1, 1], "engine.max_num_seqs: [1, 1]; expected values that differ"),
        ("engine.max_num_seqs", [True], "engine.max_num_seqs.0: True; expected a whole number"),
        ("engine.dtype", "int8", "engine.dtype: 'int8'; expected 'bfloat16', 'float16' or 'float32'"),
        ("engine.enforce_eager", "yes", "engine.enforce_eager: 'yes'; expected true or false"),
        ("engine.typo", 1, "engine.typo: 1; expected no such key"),
        ("engine", [], "engine: []; expected a block of keys"),
        ("engine.draft_tensor_parallel_size", 3, "engine.draft_tensor_parallel_size: 3; expected 1 or"),
        ("engine.pipeline_parallel_size", 2, "engine.pipeline_parallel_size: 2; expected 1 on cpu"),
        ("sampling.temperature", "hot", "sampling.temperature: 'hot'; expected a number"),
        ("sampling.temperature", float("nan"), "sampling.temperature: nan; expected a finite number"),
        ("sampling.temperature", -1, "sampling.temperature: -1; expected at least 0"),
        ("sampling.temperature", [0, -1], "sampling.temperature.1: -1; expected at least 0"),
        ("sampling.temperature", [], "sampling.temperature: []; expected a list that is not empty"),
        ("sampling.temperature", [1, 1.0], "sampling.temperature: [1, 1.0]; expected values that differ"),
        ("measure.interleaved", 1, "measure.interleaved: 1; expected true or false"),
        ("peers.hf", True, "peers.hf: True; expected no such key"),
        ("sampling.max_tokens", 5000, "sampling.max_tokens: 5000; expected less than engine.max_model_len"),
        ("speculation.chain.num_speculative_tokens", [0], "speculation.chain.num_speculative_tokens.0: 0"),
        ("speculation.implementation", "stock", "speculation.implementation: 'stock'; expected 'treespec'"),
        (
            "speculation.tree.names",
            ["nope"],
            "speculation.tree.names: 'nope'; expected a name under literals",
        ),
        ("speculation.tree.literals", {"x": [[0, 0]]}, "speculation.tree.names: x: 'node [0, 0]: its parent"),
        ("speculation.tree.literals", {"x": [0]}, "speculation.tree.literals.x.0: 0; expected a list"),
        ("models.draft", "foo", "models.draft: 'foo'; expected hf:OWNER/NAME@REVISION"),
        ("models.target", "prune:1", "models.target: 'prune:1'; expected a whole model"),
        ("models.target", "distilled:x", "models.target: 'distilled:x'; expected a whole model"),
        ("models.draft", "distilled:", "models.draft: 'distilled:'; expected hf:OWNER/NAME@REVISION"),
        ("distill.vocabulary", 0, "distill.vocabulary: 0; expected at least 1"),
        ("distill.warmup", 810, "distill.warmup: 810; expected less than distill.steps (810)"),
        ("distill.typo", 1, "distill.typo: 1; expected no such key"),
        ("models.target", None, "models.target: None; expected text"),
        ("models.sha256", {"a": "b"}, "models.sha256.a: 'b'; expected 64 hexadecimal digits"),
        ("dataset.num_prompts", 5000, "dataset.num_prompts: 5000; expected at most 1319"),
        ("dataset.sources", ["ftp:x"], "dataset.sources.0: 'ftp:x'; expected path:DIR"),
        ("typo", 1, "typo: 1; expected no such key"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(field, value, line):
    with pytest.raises(UserError) as error:
        parse_params(changed(field, value))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "kept"), [(0, (0.0,)), (1.0, (1.0,)), ([1, 0.5], (1.0, 0.5))])
def test_a_temperature_is_one_number_or_a_list(given, kept):
    params = parse_params(changed("sampling.temperature", given))
    assert params.sampling.temperature == kept
    assert override(params, {"measure.repeats": 2}).sampling.temperature == kept
    assert override(params, {"sampling.temperature": 0.7}).sampling.temperature == (0.7,)


def test_only_the_distill_block_may_be_left_out():
    raw = changed("models.draft", "prune:0")
    del raw["distill"]
    assert parse_params(raw).distill is None


def test_a_missing_block_is_named():
    raw = changed("engine", None)
    del raw["engine"]
    with pytest.raises(UserError, match=r"^engine: '\(absent\)'; expected a value"):
        parse_params(raw)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("engine: {}\nengine: {}\n", "engine"),
        ("a: [1", "expected valid YAML"),
        ("- 1\n- 2\n", "expected a mapping of blocks"),
        ("", "expected a mapping of blocks"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path, text, line):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=line):
        load_params(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.yaml"):
        load_params(tmp_path / "no.yaml")


def test_flags_replace_fields_and_are_checked():
    params = load_params()
    other = override(params, {"measure.repeats": 7, "sampling.seed": None})
    assert (other.measure.repeats, other.sampling.seed) == (7, params.sampling.seed)
    assert other.model_copy(update={"measure": params.measure}) == params
    with pytest.raises(UserError, match=r"measure\.repeats: 0; expected at least 1"):
        override(params, {"measure.repeats": 0})


def fields(raw, prefix=""):
    for key, value in raw.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{key}.")


ANY_YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_explained_in_a_line(data):
    field = data.draw(st.sampled_from([name for name in fields(DEFAULT) if "pypi:" not in name]))
    line = "expected"
    try:
        parse_params(changed(field, data.draw(ANY_YAML)))
    except UserError as mistake:
        line = str(mistake)
    assert "expected" in line
    assert "\n" not in line
