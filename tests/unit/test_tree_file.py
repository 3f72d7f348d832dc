"""The command that grows trees: files that load, that reproduce, and mistakes in one line."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common.errors import UserError
from treespec.acceptance import RankAcceptance, expected_tokens
from treespec.cost import CostModel
from treespec.tree import TokenTree
from treespec.tree_file import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["mc_sim_8b_12", "mc_sim_8b_512"])
def test_shipped_trees_come_from_their_own_command(name: str, tmp_path: Path) -> None:
    """Other seeds of numpy's generator, or another algorithm, would show here."""
    shipped = (ROOT / "trees" / f"{name}.json").read_text()
    arguments = shlex.split(json.loads(shipped)["command"])[3:]
    arguments[arguments.index("--output") + 1] = str(tmp_path / f"{name}.json")
    arguments[arguments.index("--acceptance") + 1] = str(ROOT / "trees/acceptance/assumed_8b_for_70b.json")
    main(arguments)
    again = json.loads((tmp_path / f"{name}.json").read_text())
    again["command"] = json.loads(shipped)["command"]  # the paths differ
    assert again == json.loads(shipped)
    assert max(map(len, shipped.splitlines())) < 600


@pytest.mark.parametrize("method", ["dp", "simulate", "fastest"])
def test_command_writes_a_tree_that_loads(method: str, tmp_path: Path) -> None:
    cost, output = tmp_path / "cost.json", tmp_path / "grown.json"
    cost.write_text(json.dumps(CostModel({1: 10.0, 16: 12.0}, {1: 1.0}).to_dict()))
    options = (
        f"--method {method} --nodes 9 --max-depth 4 --acceptance 0.7,0.4;0.6,0.3 --num-paths 2000 --cost"
    )
    main([*options.split(), str(cost), "--output", str(output), "--source", "two rows"])
    tree, fields = TokenTree.from_file(output), json.loads(output.read_text())
    profile = RankAcceptance(((0.7, 0.4), (0.6, 0.3)), "two rows")
    assert RankAcceptance.from_dict(fields["acceptance"]) == profile
    assert fields["expected_tokens_per_step"] == pytest.approx(expected_tokens(tree, profile), abs=1e-4)
    assert tree.num_nodes <= 9
    regrown = tmp_path / "regrown.json"  # a tree file serves as a profile
    main(["--nodes", "3", "--max-depth", "2", "--acceptance", str(output), "--output", str(regrown)])
    assert json.loads(regrown.read_text())["acceptance"] == fields["acceptance"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--nodes": "600"}, "'600 nodes'; expected 1 to 512"),
        ({"--nodes": "9", "--max-depth": "1"}, "'9 nodes in 1 levels'; expected fewer nodes"),
        ({"--acceptance": "0.5,1.5"}, "rank 1: 1.5'; expected 0 to 1"),
        ({"--acceptance": "0.5,,"}, "expected probabilities"),
        ({"--acceptance": "absent.json"}, "No such file"),
        ({"--method": "fastest"}, "--cost: None; expected a file"),
        ({"--method": "fastest", "--cost": "absent.json"}, "--cost absent.json: .*expected a readable"),
    ],
)
def test_mistakes_get_one_line_and_leave_no_file(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    options = {"--nodes": "3", "--max-depth": "2", "--acceptance": "0.5,0.5"} | changes
    with pytest.raises(UserError, match=message) as error:
        main([*itertools.chain(*options.items()), "--output", str(tmp_path / "tree.json")])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_help_is_for_people() -> None:
    command = [sys.executable, "-m", "treespec.growth", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("dynamic programme", "Monte Carlo", "--acceptance", "trees/NAME.json", "params.yaml"):
        assert word in shown
