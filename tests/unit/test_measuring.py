"""What measuring counts on: fair orders, answers paired by prompt and repeat, failures left named."""

from __future__ import annotations

import io
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from stages.common.errors import UserError
from stages.common.failure import failure_noted
from stages.common.metrics import same_share, step_ms, totals
from stages.common.passes import NO_DRAFT, Pass, runners_up
from stages.common.summary import show
from stages.interleaved import largest_tree, modes_of, schedule
from treespec.tree import TokenTree

MODES = ("none", "chain-k2", "tree-fork")


def answers(repeat: int, *token_ids: list[int]) -> Pass:
    rows = [
        {"prompt_index": i, "repeat": repeat, "output_token_ids": ids, "num_output_tokens": len(ids)}
        for i, ids in enumerate(token_ids)
    ]
    return Pass(repeat, 0.5, rows)


def test_every_group_meets_every_mode_once_a_repeat_side_by_side():
    order = schedule(5, 3, MODES, np.random.default_rng(0))
    assert Counter(order) == {(r, g, m): 1 for r in range(3) for g in range(5) for m in MODES}
    blocks = [order[i : i + len(MODES)] for i in range(0, len(order), len(MODES))]
    assert all(len({(repeat, group) for repeat, group, _ in block}) == 1 for block in blocks)


def test_the_order_is_drawn_anew_for_every_group_and_kept_by_the_seed():
    order = schedule(20, 2, MODES, np.random.default_rng(0))
    firsts = Counter(mode for _, _, mode in order[:: len(MODES)])
    assert set(firsts) == set(MODES)
    assert order == schedule(20, 2, MODES, np.random.default_rng(0))
    assert order != schedule(20, 2, MODES, np.random.default_rng(1))


def test_answers_are_paired_by_prompt_and_repeat():
    theirs = [answers(0, [1, 2], [3]), answers(1, [9], [3])]
    assert same_share(reversed(theirs), theirs) == 1
    assert same_share([answers(0, [1, 2], [3, 4])], theirs) == 0.5  # a longer answer is another answer
    assert same_share([answers(1, [1, 2], [3])], theirs) == 0.5
    with pytest.raises(KeyError):
        same_share([answers(2, [1])], theirs)


def test_what_else_a_position_could_have_been_is_noted_best_first_as_far_as_both_passes_agree():
    def at(**logprobs):
        return {int(token[1:]): SimpleNamespace(logprob=value) for token, value in logprobs.items()}

    first = {"output_token_ids": [1, 2, 3]}
    again = {
        "output_token_ids": [1, 4, 9],
        "logprobs": [at(t5=-3.0, t1=-0.5, t7=-1.0), at(t4=-0.5, t2=-0.75, t6=-0.875), at(t9=-0.1, t8=-2.0)],
    }
    assert runners_up(first, again) == {
        "top2_gap": [0.5, 0.25],
        "runner_up_ids": [7, 4],  # the second time round another token was the best
        "further_ids": [[5], [6]],
        "further_gaps": [[2.5], [0.375]],
    }


def test_totals_are_over_all_passes():
    figures = totals([answers(0, [1, 2], [3]), answers(1, [9])])
    assert figures == {"num_output_tokens": 4, "wall_time_s": 1.0, "time_per_token_ms": 250.0}


def test_the_engine_has_room_for_the_largest_mode():
    wide = TokenTree.from_paths([[0], [1], [2], [3]])
    assert largest_tree({"none": NO_DRAFT, "chain-k3": TokenTree.chain(3), "tree-wide": wide}) == wide


def test_modes_are_the_trees_that_the_arms_draft(tmp_path, monkeypatch):
    from test_params import ROOT, changed

    from stages.common.params import parse_params

    monkeypatch.chdir(ROOT)
    raw = changed("speculation.chain.num_speculative_tokens", [2])
    raw["speculation"]["tree"] = {"names": ["fork"], "literals": {"fork": [[0], [1]]}}
    by_params = modes_of(parse_params(raw), tmp_path, 1)
    assert list(by_params) == list(MODES)
    assert by_params["chain-k2"] == TokenTree.chain(2)
    raw["speculation"]["chain"]["num_speculative_tokens"] = ["auto"]
    raw["speculation"]["tree"]["names"] = ["grown_3"]
    with pytest.raises(UserError, match="--num-speculative-tokens auto"):
        modes_of(parse_params(raw), tmp_path, 1)
    (tmp_path / "trees").mkdir()
    for name, parents in (("kauto", [-1, 0]), ("grown_3", [-1, 0, 1, 0])):
        (tmp_path / f"trees/{name}-b1.json").write_text(json.dumps({"parents": parents}))
    modes = modes_of(parse_params(raw), tmp_path, 1)
    assert modes["chain-kauto"] == TokenTree.chain(1)
    assert modes["tree-grown_3"].num_nodes == 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            UserError("prompt 3", "abort", "a finished answer"),
            "prompt 3: 'abort'; expected a finished answer",
        ),
        (RuntimeError("engine died\n  at once"), "RuntimeError: engine died at once"),
    ],
)
def test_a_failure_is_named_in_place_of_the_figures(tmp_path, error, line):
    folder = tmp_path / "chain/k3-b1"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(type(error)), failure_noted(folder):
        raise error
    assert [path.name for path in folder.iterdir()] == ["failed.json"]
    assert json.loads((folder / "failed.json").read_text()) == {"error": line}


def test_the_summary_of_an_arm_shows_every_temperature():
    spread = {"mean": 1.0, "p50": 1.0, "p99": 2.0}
    drafted = {"num_drafts": 2, "mean_acceptance_length": 1.5, "draft_efficiency": 0.25}
    drafted |= {"off_chain_accepted_tokens": 0, "acceptance_rate_per_position": {"1": 0.5}}
    figures = {
        **dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms"), spread),
        **{"throughput_tokens_per_s": 50.0, "gsm8k_accuracy": 0.5, "roofline_share": None, "step_ms": None},
        "speculation": drafted,
    }
    head = {"arm": "chain", "key": "k2-b1", "device": "cpu", "dtype": "bfloat16", "dataset_source": "path"}
    head |= {"max_num_seqs": 1, "num_prompts": 2, "repeats": 1, "temperature": 0.0}
    cool, hot = figures | {"time_per_token_ms": 11.0}, figures | {"time_per_token_ms": 22.0}
    control = {"control": {"time_per_token_ms": 33.0}}
    console = Console(file=io.StringIO(), width=120)
    show(head | cool | control | {"at_temperature": {"1.0": hot}}, console)
    shown = console.file.getvalue()
    assert shown.index("temperature 0") < shown.index("11.00 ms") < shown.index("temperature 1")
    assert shown.index("temperature 1") < shown.index("22.00 ms") < shown.index("33.00 ms a token")
    assert shown.count("0.500") == 4  # acceptance and accuracy, twice


def test_the_baselines_step_is_split_by_the_share_that_forwards_took():
    assert step_ms(2.0, 100, None, 0.75) == {"target_forward": 15.0, "other": 5.0}
    assert step_ms(2.0, 100, None, None) is None
