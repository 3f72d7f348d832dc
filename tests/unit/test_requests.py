"""Which requests are drafted for, along which tree, and which token ends one."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from treespec.tree import TokenTree
from treespec.vllm_plugin.requests import NO_DRAFT, is_plain, is_stop, tree_of

OWN = TokenTree.chain(3)
EOS = 7


def params(**changes) -> SamplingParams:
    made = SamplingParams(**changes)
    made.update_from_generation_config({}, EOS)  # as the engine does it
    return made


def test_the_models_own_end_ends_a_request_unless_it_is_ignored():
    assert is_stop(params(), EOS)
    assert not is_stop(params(), 8)
    assert not is_stop(params(ignore_eos=True), EOS)
    assert is_stop(params(ignore_eos=True, stop_token_ids=[EOS]), EOS)
    assert is_stop(params(stop_token_ids=[8]), 8)


@pytest.mark.parametrize(
    ("asked", "drafted"),
    [
        (None, OWN),
        (NO_DRAFT, None),
        ([-1, 0, 1], TokenTree.chain(2)),
        ([-1, 0, 1, 2, 3], None),  # more nodes than the engine's
        ([-1, 5], None),  # no tree
        ("all", None),
    ],
)
def test_a_request_may_name_a_tree_of_its_own_and_never_break_the_engine(asked, drafted):
    extra = None if asked is None else {"treespec": {"tree": asked}}
    assert tree_of(params(extra_args=extra), OWN) == drafted


@pytest.mark.parametrize(
    "edits",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"allowed_token_ids": [1, 2]},
        {"bad_words": ["no"]},
    ],
)
def test_what_edits_the_logits_along_the_path_is_not_drafted_for(edits):
    edited = params(temperature=0, **edits)
    assert tree_of(edited, OWN) is None
    assert not is_plain(edited)
    assert is_plain(params(temperature=0))
