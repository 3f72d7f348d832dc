"""The hub's snapshots: safetensors and tokenizer only, and a reason in one line when there are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_hub import COMMIT, running_hub
from tiny_models import make_llama

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import json, os, sys
from pathlib import Path
from stages.common.errors import UserError
from stages.common.references import resolve
for reference in sys.argv[1:]:
    try:
        model = resolve(reference, Path(os.environ["HF_HOME"]), {})
        print(json.dumps([model.revision, sorted(path.name for path in model.path.iterdir())]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "model"
    make_llama(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    with running_hub(folder) as address:
        yield address


def ask(references, **environment):
    """What each reference becomes, in a process of its own: the hub's client reads its settings on import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *references],
        env={**kept, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_gives_safetensors_or_a_reason(hub, tmp_path):
    references = [
        "hf:tiny/model@main",
        "hf:tiny/model@nowhere",
        "hf:gated/model@main",
        "hf:missing/model@main",
    ]
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")}
    found, no_revision, gated, missing = ask(references, **environment)
    assert found[0] == COMMIT
    assert "model.safetensors" in found[1]
    assert "tokenizer.json" in found[1]
    assert not {"pytorch_model.bin", "original"} & set(found[1])
    assert "expected a revision that tiny/model has" in no_revision
    assert "accept its licence" in gated
    assert "set HF_TOKEN" in gated
    assert "expected a model on http://127.0.0.1" in missing
    cached, absent = ask([references[0], "hf:other/model@main"], **environment, HF_HUB_OFFLINE="1")
    assert cached == found
    assert "HF_HUB_OFFLINE is set" in absent
