"""What --compare says of two experiments."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from stages.common.errors import UserError, run_cli
from stages.report import main
from stages.reporting.compare import compare


def test_compare_shows_what_changed_since_a_revision(good, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    summary = json.loads((good / "results/summary.json").read_text())
    commit_summary(tmp_path, summary)
    summary["arms"]["chain-k3-b1"] |= {"time_per_token_ms": 5.0, "lossless": False}
    del summary["arms"]["chain-k1-b4"]
    (results / "summary.json").write_text(json.dumps(summary))
    text = compared(results, "HEAD")
    assert "HEAD → now, temperature 0" in text
    assert "HEAD → now, temperature 1" in text
    shown = {line.split()[0]: line for line in reversed(text.splitlines()) if line.strip()}
    assert "NOT LOSSLESS" in shown["chain-k3-b1"]
    assert "-5" in shown["chain-k3-b1"]
    assert "gone" in shown["chain-k1-b4"]
    with pytest.raises(UserError, match="no-such-branch"):
        compared(results, "no-such-branch")


def test_a_change_within_drift_is_not_coloured(good, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    summary = json.loads((good / "results/summary.json").read_text())
    summary["drift"]["factor"] = 1.2
    commit_summary(tmp_path, summary)
    for name, factor in (("chain-k1-b1", 1.1), ("chain-k3-b1", 0.5)):
        summary["arms"][name]["time_per_token_ms"] *= factor
    (results / "summary.json").write_text(json.dumps(summary))
    stream = io.StringIO()
    compare(Console(file=stream, width=140, force_terminal=True), results, "HEAD")
    dim, green = "\x1b[2m", "\x1b[32m"
    assert f"{dim}+10.0%" in stream.getvalue()
    assert f"{green}-50.0%" in stream.getvalue()
    assert "may differ by drift alone" in stream.getvalue()


def test_the_command_compares_and_writes_nothing(good, tmp_path, monkeypatch, capsys):
    shutil.copytree(good / "results", tmp_path / "results")
    commit_summary(tmp_path, json.loads((good / "results/summary.json").read_text()))
    before = sorted(tmp_path.rglob("*"))
    flags = ["--results", str(tmp_path / "results"), "--report", str(tmp_path / "report")]
    monkeypatch.setattr(sys, "argv", ["report", *flags, "--compare", "HEAD"])
    main()
    shown = capsys.readouterr().out
    assert "HEAD → now, temperature 0" in shown
    assert "chain-k3-b1" in shown
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(sys, "argv", ["report", *flags, "--compare=--upload-pack=x"])
    with pytest.raises(SystemExit):
        run_cli(main)
    assert "error: --compare: '--upload-pack=x'; expected a git revision" in capsys.readouterr().err


def compared(results: Path, revision: str) -> str:
    stream = io.StringIO()
    compare(Console(file=stream, width=140), results, revision)
    return stream.getvalue()


def test_compare_says_which_drafts_accept_more_and_matches_temperatures(good, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    summary = json.loads((good / "results/summary.json").read_text())
    commit_summary(tmp_path, summary)
    other = json.loads(json.dumps(summary))
    other["settings"] |= {"temperature": 1.0, "draft_sampling": "probabilistic"}
    other["arms"], other["at_temperature"] = summary["at_temperature"]["1.0"]["arms"], {}
    for arm in other["arms"].values():
        if arm.get("mean_acceptance_length"):
            arm["mean_acceptance_length"] += 0.5
    (results / "summary.json").write_text(json.dumps(other))
    text = " ".join(compared(results, "HEAD").split())
    assert "draft_sampling: greedy (HEAD) → probabilistic (now)" in text
    assert "probabilistic drafts accept more" in text
    assert "temperature 1" in text
    assert "temperature 0 →" not in text


def commit_summary(folder: Path, summary: dict) -> None:
    (folder / "results/summary.json").write_text(json.dumps(summary))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "before"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
