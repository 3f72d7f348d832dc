"""Real processes, really killed: no child is left, no temporary file stays for longer than the next start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
from test_params import ROOT

from stages.common import processes
from stages.common.errors import UserError
from stages.common.failure import failure_noted
from stages.common.files import atomic_path, sweep, temporary_prefix

CHILD = """
import multiprocessing, sys, time
from stages.common.engine import EnginePlan   # what every engine's stage imports
def sleep(): time.sleep(600)
def spawn():
    child = multiprocessing.get_context(sys.argv[1]).Process(target=sleep); child.start()
    print(child.pid, flush=True); sleep()
if __name__ == "__main__":
    child = multiprocessing.get_context(sys.argv[1]).Process(target=spawn); child.start()
    print(child.pid, flush=True); sleep()
"""
STAGE = """
import sys, time
from pathlib import Path
from stages.common.errors import run_cli
from stages.common.files import atomic_path
def main():
    with atomic_path(Path(sys.argv[1]) / "out"):
        print("ready", flush=True); time.sleep(600)
run_cli(main)
"""


def start(code: str, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def gone(pid: int, within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_and_theirs_die_with_a_killed_engine(tmp_path: Path, method: str) -> None:
    with start(CHILD, tmp_path, method) as process:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(psutil.pid_exists, pids))
        process.kill()
    assert all(map(gone, pids))


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 143, "terminated; no result was written\n"),
        (signal.SIGINT, 130, "interrupted; no result was written\n"),
    ],
)
def test_a_stage_that_is_asked_to_end_says_so_and_tidies_up(tmp_path, number, status, line) -> None:
    with start(STAGE, tmp_path, str(tmp_path)) as process:
        process.stdout.readline()
        assert list(tmp_path.glob(".out.*.tmp"))
        process.send_signal(number)
        assert process.communicate(timeout=60)[1] == line
    assert process.returncode == status
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_stage_ends_with_the_dvc_that_runs_it(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    shell = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    with start(shell, tmp_path, str(tmp_path / "stage.py"), str(tmp_path), DVC_STAGE="baseline") as dvc:
        dvc.stdout.readline()
        (stage,) = psutil.Process(dvc.pid).children()
        dvc.kill()
    assert gone(stage.pid)
    assert list(tmp_path.glob(".out.*.tmp")) == []


def test_the_next_writer_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    with start(STAGE, tmp_path, str(tmp_path)) as process:
        process.stdout.readline()
        sweep(tmp_path)
        (left,) = tmp_path.glob(".out.*.tmp")  # its writer is alive
        process.kill()
    folder = tmp_path / left.name.replace(".out.", ".folder.")
    (folder / "inside").mkdir(parents=True)
    others = [tmp_path / ".other.tmp", tmp_path / f"{temporary_prefix('mine')}x.tmp"]
    for path in others:
        path.touch()
    with atomic_path(tmp_path / "another"):
        pass
    assert not left.exists()
    assert not folder.exists()
    assert all(path.exists() for path in others)


def test_a_failure_that_cannot_be_noted_is_still_the_failure(tmp_path, monkeypatch, capsys) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.common.failure.atomic_folder", full)
    with pytest.raises(RuntimeError, match="engine died"), failure_noted(tmp_path / "chain"):
        raise RuntimeError("engine died")
    assert "No space left on device" in capsys.readouterr().err


def test_sockets_of_a_deep_temporary_folder_are_in_a_short_one(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = processes.socket_folder()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / str(uuid.uuid4())))
    assert list(deep.iterdir()) == []
    monkeypatch.setattr(processes, "_SHORT_PARENT", deep)
    with pytest.raises(UserError, match=r"TMPDIR: .*; expected a folder whose path has at most \d+ bytes"):
        processes.socket_folder()
