"""Test fixture: the whole report of a synthetic results folder.

shown = render(tmp_path, Scenario())     # tmp_path/report/index.html, tmp_path/results/summary.json ...
"""

from __future__ import annotations

import io
from pathlib import Path

from results_factory import Flip, Scenario, write_results
from rich.console import Console

from stages.common.params import load_params
from stages.report import build

GOOD = Scenario(
    temperatures=(0.0, 1.0),
    repeats=3,
    tokens=40,
    interleaved_speedup=1.5,
    none_slowdown=1.05,
    peer=True,
    diverge={"chain-k1-b1": Flip(2, gap=0.1)},
)


def render(folder: Path, scenario: Scenario) -> str:
    """Build the report in `folder`; return what the terminal shows."""
    stream = io.StringIO()
    params = load_params(write_results(folder, scenario))
    build(
        params,
        folder / "results",
        folder / "report",
        folder / "recommended.yaml",
        Console(file=stream, width=100),
    )
    return stream.getvalue()
