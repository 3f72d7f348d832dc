"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine tests set this for their processes, and so for this one, once they have been imported."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """A folder with a whole report, measured in every way, and terminal.txt: what the terminal showed."""
    from report_factory import GOOD, render

    folder = tmp_path_factory.mktemp("good")
    (folder / "terminal.txt").write_text(render(folder, GOOD))
    return folder
