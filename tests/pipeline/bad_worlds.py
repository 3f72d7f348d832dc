"""Rows of the table of bad input: machines, installations, disks and hubs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mistake import BASELINE, CHAIN, GROW, Mistake, write

CUDA = {"engine.device": "cuda"}
GIB = 1 << 30
COMMIT = "a" * 40


def gpus(count: int, memory: int = 80 * GIB) -> Callable[[pytest.MonkeyPatch], None]:
    """Pretend: vLLM's CUDA build, and so many GPUs."""

    def pretend(patch: pytest.MonkeyPatch) -> None:
        import torch

        patch.setattr("stages.common.engine._is_cpu_build", lambda: False)
        patch.setattr(torch.cuda, "is_available", lambda: count > 0)
        patch.setattr(torch.cuda, "device_count", lambda: count)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))

    return pretend


def _no_vllm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("stages.common.engine.installed_vllm", lambda: None)


def _no_plugin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("stages.common.engine.entry_points", lambda **_: ())


def read_only(name: str) -> Callable[[Path], None]:
    """Spoil: a folder that nobody can write; for root, whom rights do not bind, mounted so."""

    def spoil(project: Path) -> None:
        folder = project / name
        folder.mkdir(exist_ok=True)
        if os.geteuid():
            folder.chmod(0o555)
            return
        mount("--bind", str(folder), str(folder))
        mount("-o", "remount,ro,bind", str(folder))

    return spoil


def full_disk(name: str, size: str, filled: bool = False) -> Callable[[Path], None]:
    """Spoil: a folder on a disk of its own with `size` bytes in all."""

    def spoil(project: Path) -> None:
        (project / name).mkdir()
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(project / name))
        if filled:
            (project / name / "filler").write_bytes(bytes(shutil.disk_usage(project / name).free))

    return spoil


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


def unmount_below(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in reversed(mounts):
        if path.startswith(f"{folder}/"):
            subprocess.run(["umount", path], check=True)


def distribution(name: str, version: str, entry_point: str = "") -> Callable[[Path], None]:
    """Spoil: an installed package in the folder `site`, by its metadata."""
    info = f"site/{name}-{version}.dist-info"

    def spoil(project: Path) -> None:
        write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")(project)
        if entry_point:
            write(f"{info}/entry_points.txt", f"[vllm.general_plugins]\n{entry_point}\n")(project)

    return spoil


def _half_cached(project: Path) -> None:
    """The hub's cache as it is left by a download that was cut off."""
    cache = "hf/hub/models--tiny--model"
    write(f"{cache}/refs/main", COMMIT)(project)
    write(f"{cache}/snapshots/{COMMIT}/config.json", '{"vocab_size": 128, "num_hidden_layers": 2}')(project)
    write(f"{cache}/blobs/{COMMIT}.incomplete", "x")(project)


SITE = {"PYTHONPATH": "{project}/site"}
HUB = {"HF_ENDPOINT": "{hub}", "HF_HOME": "{project}/hf"}
OFFLINE = HUB | {"HF_HUB_OFFLINE": "1"}
DEVICES = {
    "a CUDA profile on the CPU build": Mistake(
        BASELINE, "engine.device: 'cuda'; expected cpu: this is the CPU", CUDA
    ),
    "a CPU profile on the CUDA build": Mistake(
        BASELINE, "engine.device: 'cpu'; expected cuda: this is the CUDA build", pretend=gpus(1)
    ),
    "no GPU": Mistake(
        BASELINE, "engine.device: 'cuda'; expected cpu: no GPU was found", CUDA, pretend=gpus(0)
    ),
    "too few GPUs": Mistake(
        (*BASELINE, "--tensor-parallel-size", "4"),
        "engine.tensor_parallel_size: 4; expected at most 2: 2 GPUs are here",
        CUDA,
        pretend=gpus(2),
    ),
    "too few GPUs for two stages": Mistake(
        (*BASELINE, "--tensor-parallel-size", "2"),
        "engine.tensor_parallel_size: 2; expected at most 1: 3 GPUs are here, for 2 pipeline stages",
        CUDA | {"engine.pipeline_parallel_size": 2},
        pretend=gpus(3),
    ),
    "pipeline stages beside a draft": Mistake(
        CHAIN,
        "engine.pipeline_parallel_size: 2; expected 1 beside a draft model",
        CUDA | {"engine.pipeline_parallel_size": 2},
        pretend=gpus(2),
    ),
    "no Ray": Mistake(
        BASELINE,
        "engine.distributed_executor_backend: 'ray'; expected mp: Ray is not installed",
        CUDA | {"engine.distributed_executor_backend": "ray"},
        pretend=gpus(2),
    ),
    "a GPU too small": Mistake(
        ("fetch_models",),
        "memory of a GPU: '0.0 GiB'; expected 0.0 GiB for weights",
        CUDA,
        pretend=gpus(1, 1 << 16),
    ),
    "no GPU to describe": Mistake(
        ("environment", "--device", "cuda"), "engine.device: 'cuda'; expected cpu, since torch sees no CUDA"
    ),
}
INSTALLATIONS = {
    "no vLLM": Mistake(BASELINE, "vllm: None; expected version 0.15.0", pretend=_no_vllm),
    "another vLLM": Mistake(
        BASELINE,
        "vllm: '0.14.1'; expected version 0.15.0",
        spoil=distribution("vllm", "0.14.1"),
        environment=SITE,
    ),
    "no plugin": Mistake(
        CHAIN, "vLLM plugin treespec: []; expected treespec.vllm_plugin:register alone", pretend=_no_plugin
    ),
    "another plugin of the name": Mistake(
        CHAIN,
        "vLLM plugin treespec: ['other.plugin:register', 'treespec.vllm_plugin:register']; expected treespec",
        spoil=distribution("other", "1.0", "treespec = other.plugin:register"),
        environment=SITE,
    ),
    "another package of the name": Mistake(
        CHAIN,
        "treespec: '{project}/site/treespec'; expected the package beside stages",
        spoil=write("site/treespec/__init__.py", ""),
        environment=SITE,
    ),
}
DISKS = {
    "read-only results": Mistake(
        BASELINE, "results: 'Read-only file system'; expected a folder that can", spoil=read_only("results")
    ),
    "results that are a file": Mistake(
        BASELINE, "results: '... is a file'; expected a folder to write to", spoil=write("results", "")
    ),
    "no space left": Mistake(
        BASELINE,
        "disk of results: '... MiB free'; expected at least 64 MiB",
        spoil=full_disk("results", "1m"),
    ),
    "no space left for a tree": Mistake(
        (*GROW, "--tree", "fork", "--results", "small"),
        "disk: 'No space left on device'; expected a place to write, with room on its disk",
        spoil=full_disk("small", "16k", filled=True),
    ),
    "read-only questions": Mistake(
        ("fetch_gsm8k", "--source", "synthetic", "--out", "data/gsm8k"),
        "...data/.gsm8k...: 'Read-only file system'; expected a place to write",
        spoil=read_only("data"),
    ),
}
HUBS = {
    "gated": Mistake(
        (*BASELINE, "--target-model", "hf:gated/model@main"),
        "models: 'hf:gated/model@main'; expected a model open to you: accept...and set HF_TOKEN",
        environment=HUB,
    ),
    "offline": Mistake(
        (*BASELINE, "--target-model", "hf:tiny/model@main"),
        "models: 'hf:tiny/model@main'; expected a model already in...since HF_HUB_OFFLINE is set",
        environment=OFFLINE,
    ),
    "half in the cache": Mistake(
        (*BASELINE, "--target-model", "hf:tiny/model@main"),
        "models: 'hf:tiny/model@main'; expected tokenizer.json or tokenizer.model in",
        spoil=_half_cached,
        environment=OFFLINE,
    ),
    "no hub": Mistake(
        (*BASELINE, "--target-model", "hf:tiny/model@main"),
        "models: 'hf:tiny/model@main'; expected a model already in...since http://127.0.0.1:9 does not",
        environment=HUB | {"HF_ENDPOINT": "http://127.0.0.1:9"},
    ),
}
BAD_WORLDS = {
    f"{kind}: {name}": mistake
    for kind, rows in {"device": DEVICES, "installation": INSTALLATIONS, "disk": DISKS, "hub": HUBS}.items()
    for name, mistake in rows.items()
}
