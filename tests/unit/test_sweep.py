"""What a sweep says of grown trees and of auto: right where the figures are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stages import sweep as command
from stages.common.errors import UserError
from stages.common.params import load_params, override
from stages.reporting.statistics import Bootstrap
from stages.reporting.sweep import Sweep
from stages.reporting.sweep_chart import draw_sweep
from treespec.tree import TokenTree

TREES = {
    "chain-k2": TokenTree.chain(2),
    "chain-k4": TokenTree.chain(4),
    "chain-kauto": TokenTree.chain(4),
    "tree-grown_4": TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [1]]),
    "tree-fork": TokenTree.from_paths([[0], [1], [2], [3]]),
    "tree-grown_auto": TokenTree.from_paths([[0], [1]]),
}
MS = {"none": 20.0, "chain-k2": 12.0, "chain-k4": 10.0, "chain-kauto": 10.2}
MS |= {"tree-grown_4": 11.0, "tree-fork": 15.0, "tree-grown_auto": 11.0}
TOKENS = {"chain-k2": 2.0, "chain-k4": 2.5, "chain-kauto": 2.5}
TOKENS |= {"tree-grown_4": 3.0, "tree-fork": 1.8, "tree-grown_auto": 1.9}


@pytest.fixture
def found() -> Sweep:
    """Ten prompts, some twice as slow as others, in every mode alike but for a percent."""
    rng = np.random.default_rng(0)
    slow = rng.uniform(1, 2, (10, 1))
    ms, tokens = (
        pd.DataFrame(
            np.array(list(values.values())) * slow**power * rng.uniform(0.99, 1.01, (10, len(values))),
            columns=list(values),
        )
        for values, power in ((MS, 1), (TOKENS, 0))
    )
    return Sweep(TREES, ms, tokens, {}, Bootstrap(0.95, 500, 0))


def test_grown_trees_are_held_against_all_others_of_as_many_nodes(found):
    rows = found.evidence()["acceptance_at_equal_node_count"]
    assert [(row["grown"], row["against"]) for row in rows] == [
        ("tree-grown_4", "chain-k4"),
        ("tree-grown_4", "tree-fork"),
    ]
    assert rows[0]["ratio"] == pytest.approx(3.0 / 2.5, rel=0.01)
    assert rows[0]["ratio_low"] < rows[0]["ratio"] < rows[0]["ratio_high"]
    assert all(row["surely"] and row["at_least_as_many"] for row in rows)


def test_auto_is_held_against_the_fastest_that_it_did_not_choose(found):
    chain, tree = found.evidence()["auto_against_the_best"]
    assert (chain["chosen_by"], chain["best"], chain["is_the_best"]) == ("chain-kauto", "chain-k4", True)
    assert chain["slower_percent"] == pytest.approx(2, abs=0.7)
    assert chain["slower_percent_low"] <= chain["slower_percent"] <= chain["slower_percent_high"]
    assert chain["within_5_percent"]
    assert chain["surely"]
    assert tree["slower_percent"] == pytest.approx(10, abs=1)
    assert not tree["within_5_percent"]
    assert not tree["is_the_best"]


def test_the_table_has_every_mode_and_the_picture_every_name(found):
    table = found.table().set_index("mode")
    assert list(table.index) == ["none", *TREES]
    assert table.loc["chain-k4", "speedup"] == pytest.approx(2, rel=0.01)
    assert table.loc["tree-fork", "nodes"] == 4
    svg = draw_sweep(found.table(), "somewhere")
    assert all(name in svg for name in (">auto<", ">fork<", "somewhere"))


def test_what_is_not_committed_is_not_swept_unless_it_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected a git clone"):
        command.committed()
    files = [tmp_path / name for name in ("params.yaml", "results/summary.json", "stages/arm.py")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("before")
    for arguments in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"),
    ):
        command.git(*arguments)
    commit = command.committed()
    for file in files[:2]:
        file.write_text("after")
    assert command.committed() == commit == command.git("rev-parse", "HEAD")
    files[2].write_text("after")
    with pytest.raises(UserError, match=r"git: 'stages/arm.py'; expected everything committed"):
        command.committed()


@pytest.mark.parametrize(
    ("field", "value"),
    [("measure.interleaved", False), ("engine.max_num_seqs", [1, 4]), ("sampling.temperature", 1.0)],
)
def test_a_profile_that_cannot_be_swept_is_refused(field, value):
    params = load_params(command.Path("profiles/sweep.yaml"))
    command.check(params)
    with pytest.raises(UserError, match=rf"{field}: "):
        command.check(override(params, {field: value}))
