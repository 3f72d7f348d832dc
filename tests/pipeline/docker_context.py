"""What the image is built from in the tests: this checkout, with private files wherever people leave them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from docker_daemon import ROOT

CANARY = "canary-that-no-layer-may-hold"
# Where people keep what is not for others: beside the project, and by mistake within its folders.
PRIVATE = (".env", ".netrc", ".dvc/config.local", ".git/config", "data/gsm8k/test.parquet", "results/x.json")
PRIVATE += (
    "models/hf-x/model.safetensors",
    "models/draft/optimizer.safetensors",
    "docker/id_rsa",
    "stages/.env",
)
PRIVATE += ("profiles/.secret", "trees/token.txt", "treespec/weights.gguf", "treespec/__pycache__/a.pyc")
NOT_FOR_THE_IMAGE = ("tests/", "results/", "report/", ".ci/", "Makefile", "dvc.lock", ".dockerignore")
NOT_FOR_THE_IMAGE += ("docker/Dockerfile", "docker/tools.in", "requirements/dev.lock")


def make_context(folder: Path) -> Path:
    """What a build is given: the files of this checkout that git knows, among private ones."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in PRIVATE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CANARY)
    return folder


def tracked() -> list[str]:
    command = ["git", "-C", str(ROOT), "-c", "safe.directory=*", "ls-files"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def for_the_image() -> set[str]:
    """The tracked files that the image's copy of the project consists of."""
    names = (name for name in tracked() if not name.startswith(NOT_FOR_THE_IMAGE))
    return {name for name in names if not name.startswith("requirements/") or name.endswith(".lock")}
