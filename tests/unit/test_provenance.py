"""A report says when and where its figures are from: nothing restored or resumed passes for new."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

from results_factory import Scenario, write_results
from rich.console import Console

from stages.common.environment import host_id
from stages.common.files import read_json, write_json
from stages.common.params import load_params
from stages.report import build
from stages.reporting.provenance import provenance
from stages.reporting.schema import Resumed


def arm(name: str, began: str, ended: str, host: str = "a", resumed: Resumed | None = None):
    metrics = SimpleNamespace(
        measured_at=f"2026-11-{began}:00+00:00",
        finished_at=f"2026-11-{ended}:00+00:00",
        host=host,
        resumed=resumed,
    )
    return SimpleNamespace(name=SimpleNamespace(name=name), metrics=metrics)


def said(*arms) -> dict[str, str]:
    return dict(provenance(SimpleNamespace(arms={one.name.name: one for one in arms})))


def test_one_sitting_is_a_span():
    found = said(arm("chain", "20T10:30", "20T10:40"), arm("baseline", "20T10:00", "20T10:20"))
    assert found == {"Measured": "2026-11-20T10:00:00+00:00 to 2026-11-20T10:40:00+00:00"}


def test_what_was_restored_is_told_from_what_was_measured():
    found = said(arm("baseline", "20T10:00", "20T10:20"), arm("chain", "22T10:30", "22T10:40"))
    assert found["Measured"] == (
        "2 sittings, the earlier ones kept or restored: "
        "2026-11-20T10:00:00+00:00 to 2026-11-20T10:20:00+00:00 (baseline); "
        "2026-11-22T10:30:00+00:00 to 2026-11-22T10:40:00+00:00 (chain)"
    )


def test_another_host_is_another_sitting_and_named():
    found = said(arm("baseline", "20T10:00", "20T10:20"), arm("chain", "20T10:21", "20T10:40", host="b"))
    assert "(baseline, host a); " in found["Measured"]
    assert found["Measured"].endswith("(chain, host b)")


def test_a_resumed_arm_is_named_in_the_report(tmp_path):
    params = load_params(write_results(tmp_path, Scenario(batches=(1,), ks=(3,))))
    path = tmp_path / "results/chain/k3-b1/metrics.json"
    write_json(path, read_json(path) | {"resumed": {"pieces": 9, "from_journal": 4}})
    places = (tmp_path / "results", tmp_path / "report", tmp_path / "recommended.yaml")
    build(params, *places, Console(file=StringIO()))
    line = "Interrupted and gone on with: chain-k3-b1 after 4 of 9 parts"
    assert line in (tmp_path / "report/report.md").read_text()


def test_a_host_is_told_by_nothing_that_names_it():
    assert host_id() == host_id()
    assert len(host_id()) == 12
