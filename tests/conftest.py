"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def gsm8k_folder() -> Path:
    """The official GSM8K (main/test-00000-of-00001.parquet): $GSM8K_DIR, or shared/ beside the checkout."""
    folder = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared/data/gsm8k"))
    if not (folder / "main/test-00000-of-00001.parquet").is_file():
        pytest.skip("the official GSM8K is not here; set GSM8K_DIR to a folder that holds main/")
    return folder
