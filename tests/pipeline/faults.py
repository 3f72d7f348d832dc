"""Hurting a run of the pipeline at a given moment, and what must be left of it afterwards: nothing.

harm = Harm(project, ["dvc", "repro", ...], stage="stages.baseline")
with harm.running():
    harm.wait(0.4 * seconds)
    harm.strike("kill the stage")
assert harm.leftovers() == []
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pipeline_project import environment

GRACE_S = 30.0  # for processes that end in good order
POLL_S = 0.05
# Of the hurt run and of the next, which goes on only where nothing that an engine heeds has changed.
SETTINGS = {"OMP_WAIT_POLICY": "passive"}


@contextmanager
def own_shared_memory() -> Iterator[int | None]:
    """A process in a mount namespace with a /dev/shm of its own, since this machine may have other work.

    None where that takes rights that are not here; then shared memory is not looked at.
    """
    script = "mount -t tmpfs tmpfs /dev/shm && echo ready && cat"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        yield holder.pid if holder.stdout.readline() else None
        holder.stdin.close()


def heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that comes of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Harm:
    """A command, every process that it ever had, and what it left."""

    project: Path
    command: list[str]
    stage: str  # the module of the process that is struck
    temporary: Path
    holder: int | None = None  # of own_shared_memory
    output: str = ""
    status: int | None = None

    @property
    def settings(self) -> dict[str, str]:
        return {"TMPDIR": str(self.temporary), **SETTINGS}

    @contextmanager
    def running(self) -> Iterator[Harm]:
        self.temporary.mkdir(exist_ok=True)
        self.seen: set[psutil.Process] = set()
        self.started = time.monotonic()
        log = self.temporary.parent / "harm.log"
        enter = (
            ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", f"--wd={self.project}"] if self.holder else []
        )
        with open(log, "w+", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [*enter, *self.command],
                cwd=self.project,
                env=environment(**self.settings),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )
            watch = threading.Thread(target=self._watch, daemon=True)
            watch.start()
            try:
                yield self
                self.process.wait(timeout=300)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                watch.join()
            self.status = self.process.returncode
            self.output = log.read_text(encoding="utf-8", errors="replace")

    def _watch(self) -> None:
        while self.process.poll() is None:
            with suppress(psutil.Error):
                whole = psutil.Process(self.process.pid)  # the stage itself where DVC does not run it
                self.seen.update({whole, *whole.children(recursive=True)})
            time.sleep(POLL_S)

    def find(self, *words: str) -> psutil.Process | None:
        """A living process of this command whose name or command line holds one of the words."""
        for process in sorted(self.seen, key=lambda one: one.pid):
            with suppress(psutil.Error):
                text = f"{process.name()} {' '.join(process.cmdline())}"
                shell = process.name() in ("sh", "bash", "dash")
                if not shell and process.is_running() and any(word in text for word in words):
                    return process
        return None

    def wait_for(self, *words: str, within_s: float = 120) -> psutil.Process | None:
        """The process once it is there; None if the command ended first."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := self.find(*words):
                return found
            time.sleep(POLL_S)
        return None

    def wait(self, seconds: float) -> None:
        """Let so many seconds pass, or less if the command ends first."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)

    def strike(self, kind: str) -> bool:
        """Do the harm; False if what it is for had ended already."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            return STRIKES[kind](self)
        return False

    def leftovers(self) -> list[str]:
        """Living processes, shared memory."""
        _, alive = psutil.wait_procs(self.seen, timeout=GRACE_S)
        left = [f"process {one.pid} {' '.join(_cmdline(one))[:100]}" for one in alive if _cmdline(one)]
        memory = os.listdir(f"/proc/{self.holder}/root/dev/shm") if self.holder else []
        return left + [f"shared memory {name}" for name in memory]

    def temporary_files(self) -> list[str]:
        """What is in the temporary folder and in the project under a temporary name."""
        kept = ("torchinductor_", "vllm", "torch_extensions")
        mine = [path.name for path in self.temporary.iterdir() if not path.name.startswith(kept)]
        return mine + [str(path) for path in self.project.rglob("*.tmp") if ".dvc" not in path.parts]


def _cmdline(process: psutil.Process) -> list[str]:
    """Empty of a dead one, and of one that nobody has waited for."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _kill(harm: Harm, number: int, *words: str) -> bool:
    process = harm.find(*words)
    if process is None:
        return False
    process.send_signal(number)
    return True


def _interrupt_all(harm: Harm) -> bool:
    """As a terminal does on Ctrl-C."""
    if harm.process.poll() is not None or harm.find(harm.stage) is None:
        return False
    os.killpg(harm.process.pid, signal.SIGINT)
    return True


def _kill_dvc(harm: Harm) -> bool:
    if harm.find(harm.stage) is None:
        return False
    harm.process.kill()
    return True


def _starve(harm: Harm) -> bool:
    """A worker may take no more memory than it has."""
    worker = harm.find("VllmWorker", "VLLM::Worker")
    if worker is None:
        return False
    most = worker.memory_info().vms
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (most, most))
    return True


STRIKES = {
    "kill the stage": lambda harm: _kill(harm, signal.SIGKILL, harm.stage),
    "terminate the stage": lambda harm: _kill(harm, signal.SIGTERM, harm.stage),
    "interrupt": _interrupt_all,
    "kill dvc": _kill_dvc,
    "kill the engine core": lambda harm: _kill(harm, signal.SIGKILL, "VLLM::EngineCor", "EngineCore"),
    "kill a worker": lambda harm: _kill(harm, signal.SIGKILL, "VllmWorker", "VLLM::Worker"),
    "starve a worker": _starve,
}
