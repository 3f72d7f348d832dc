"""From recorded ranks to what is grown, foretold and recommended."""

from __future__ import annotations

import random
import sys

import pytest
import yaml
from test_params import ROOT, changed

from stages import grow_tree
from stages.calibration.choice import chain_of, fastest_tree, tree_of
from stages.calibration.model import Calibration
from stages.calibration.timing import BatchCosts, Step, fit, shapes
from stages.common.errors import UserError
from stages.common.files import read_json, write_json
from stages.common.params import load_params, parse_params
from stages.reporting.load import ArmName
from stages.reporting.prediction import predict_arms
from stages.reporting.recommended import write_recommended
from treespec.acceptance import Recording
from treespec.cost import CostModel, inner_widths
from treespec.tree import TokenTree

ABSENT = -1


@pytest.fixture
def params(monkeypatch):
    monkeypatch.chdir(ROOT)
    return parse_params(changed("speculation.tree.names", ["grown_auto", "grown_8"]))


@pytest.fixture
def ranks() -> list[list[int]]:
    """Eight answers: the draft's first choice two times in three, its second one time in six."""
    rng = random.Random(0)
    return [rng.choices([0, 1, 2, ABSENT], [8, 2, 1, 1], k=200) for _ in range(8)]


@pytest.fixture
def results(tmp_path, ranks):
    """A calibration in which a token more costs the target a fiftieth, and a draft a tenth of a pass."""
    cost = CostModel({1: 10.0, 101: 30.0}, {1: 1.0, 101: 3.0}, overhead_ms=1.0)
    costs = BatchCosts(baseline_ms=10.5, chain=cost, tree=cost)
    folder = tmp_path / "calibration"
    folder.mkdir()
    answers = [{"num_prompt_tokens": 50, "ranks": own} for own in ranks]
    write_json(folder / "ranks.json", {"source": "made up", "answers": answers})
    batches = {"1": costs.to_dict(), "4": costs.to_dict()}
    write_json(
        folder / "costs.json", {"batches": batches, "prompt_ms_per_token": {"none": 0.1, "drafted": 0.1}}
    )
    return tmp_path


def walk(tree: TokenTree, ranks: list[int], position: int) -> int:
    """Tokens of one step whose root stands before `position`: down the recorded ranks, and the bonus."""
    children = {(tree.parents[n], tree.ranks[n]): n for n in range(1, tree.num_nodes + 1)}
    node = tokens = 0
    while position + tokens < len(ranks) and (node, ranks[position + tokens]) in children:
        node = children[node, ranks[position + tokens]]
        tokens += 1
    return min(tokens + 1, len(ranks) - position)


@pytest.mark.parametrize(
    "tree", [TokenTree.chain(4), TokenTree.from_paths([[0], [1], [2], [0, 0], [0, 1], [0, 0, 0]])]
)
def test_replay_counts_the_steps_that_a_walk_takes(ranks, tree):
    expected = []
    for own in ranks:
        position, steps = 1, 0  # the first token comes from the prompt's own pass
        while position < len(own):
            position += walk(tree, own, position)
            steps += 1
        expected.append(steps)
    assert Recording(ranks).steps(tree) == pytest.approx(expected, rel=0.05)


def test_auto_is_the_chain_of_least_predicted_time(params, results):
    calibration = Calibration.read(results)
    times = {k: calibration.ms_per_token(TokenTree.chain(k), 1) for k in range(1, 17)}
    assert chain_of(params, "auto", 1, results).num_nodes == min(times, key=times.get)
    assert chain_of(params, 2, 1, results) == TokenTree.chain(2)


def test_grown_trees_are_at_least_as_good_as_chains(params, results):
    calibration = Calibration.read(results)
    tree = tree_of(params, "grown_8", 1, results)
    assert tree.num_nodes == 8
    assert calibration.tokens_per_step(tree) >= calibration.tokens_per_step(TokenTree.chain(8))
    fastest = calibration.ms_per_token(tree_of(params, "grown_auto", 4, results), 4)
    assert fastest <= calibration.ms_per_token(chain_of(params, "auto", 4, results), 4)


def test_what_needs_a_calibration_says_so(params, tmp_path):
    for name in ("grown_8", "grown_auto"):
        with pytest.raises(UserError, match="expected a calibration; run"):
            tree_of(params, name, 1, tmp_path)
    uncalibrated = Calibration(Recording([[0, 0]]), (1,), {}, {})
    with pytest.raises(UserError, match="calibrated batch size"):
        fastest_tree(params, 2, uncalibrated)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("speculation.tree.names", ["grown_0"], "grown_N with N from 1 to 512"),
        ("speculation.tree.names", ["grown_9999"], "grown_N with N from 1 to 512"),
        ("speculation.tree.names", ["grown_much"], "grown_N with N from 1 to 512"),
        ("speculation.chain.num_speculative_tokens", ["auto", "auto"], "values that differ from each other"),
        ("speculation.chain.num_speculative_tokens", ["many"], "a whole number or auto"),
        ("speculation.chain.num_speculative_tokens", [65], "at most 64"),
    ],
)
def test_a_name_that_cannot_be_grown_is_one_line(monkeypatch, field, value, line):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=line):
        parse_params(changed(field, value))


def test_the_command_writes_the_arms_file(params, results, monkeypatch, capsys):
    for flags in (
        ["--tree", "grown_8"],
        ["--num-speculative-tokens", "auto"],
        ["--num-speculative-tokens", "3"],
    ):
        monkeypatch.setattr(sys, "argv", ["grow", *flags, "--max-num-seqs", "1", "--results", str(results)])
        grow_tree.main()
    assert read_json(results / "trees/grown_8-b1.json")["nodes"] == 8
    assert TokenTree.from_file(results / "trees/k3-b1.json") == TokenTree.chain(3)
    assert capsys.readouterr().out.count("at batch 1") == 3
    arms = [ArmName("baseline", "", 1), ArmName("chain", "kauto", 1), ArmName("tree", "grown_8", 1)]
    found = predict_arms(params, results, arms)
    assert list(found) == ["baseline-b1", "chain-kauto-b1", "tree-grown_8-b1"]
    times = [prediction.value for prediction in found.values()]
    assert all(one.low <= one.value <= one.high for one in found.values())
    assert times[0] == pytest.approx(10.5 * 199 / 200 + 0.1 * 50 / 200, rel=0.02)
    assert times[1] < times[0]


def test_nothing_is_foretold_without_calibration(params, tmp_path):
    assert predict_arms(params, tmp_path, [ArmName("baseline", "", 1)]) == {}


@pytest.mark.parametrize("best", [ArmName("chain", "kauto", 4), ArmName("tree", "grown_8", 1)])
def test_the_recommended_params_hold_the_winner_alone(params, best, tmp_path, monkeypatch):
    path = write_recommended(params, best, tmp_path / "profiles/recommended.yaml")
    raw = yaml.safe_load(path.read_text())
    adopted = load_params(path)
    assert raw["engine"]["max_num_seqs"] == [best.max_num_seqs]
    assert adopted.speculation.tree.names == (("grown_8",) if best.arm == "tree" else ())
    assert write_recommended(params, None, path) is None
    assert not path.exists()


def test_the_fit_recovers_what_levels_and_tokens_cost():
    """From steps of known costs, part of which no clock of the plugin sees, deep trees are foretold."""

    def costs(tree: TokenTree, batch: int) -> Step:
        target = 15.0 + 0.2 * batch * (tree.num_nodes + 1)
        levels = sum(2.0 + 0.05 * batch * width for width in inner_widths(tree))
        return Step(wall=target + levels + 3.0, target=target)

    deep = TokenTree.from_paths([[0] * n for n in range(1, 13)] + [[1], [1, 0], [0, 1], [0, 1, 0]])
    for batch, most in ((1, 128), (4, 128), (1, 20)):
        timed = {tree: costs(tree, batch) for tree in shapes(batch, most)}
        fitted = fit({None: Step(16.0, 15.0), **timed}, batch)
        for tree in (TokenTree.chain(5), TokenTree.chain(11), deep):
            assert fitted.step_ms(tree, batch) == pytest.approx(costs(tree, batch).wall, rel=0.02), (
                batch,
                tree,
            )
        assert fitted.step_ms(None, batch) == 16.0
