"""Which machine this is: what another machine's figures must never be mistaken for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from treespec.vllm_plugin import installed_vllm

_PACKAGES = ("torch", "transformers", "dvc")
_CGROUP = Path("/sys/fs/cgroup")


def describe_machine(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The machine's identity: no time, no load, no free memory. UserError for cuda without a GPU."""
    return {
        **_device(device),
        "cpu_model": _cpu_model(),
        "cpu_count": _cpu_count(),
        "memory_gib": _memory_gib(),
        "versions": {
            "python": platform.python_version(),
            "vllm": installed_vllm(),  # not by its name: the CPU build goes by two, one only once imported
            **{name: _version(name) for name in _PACKAGES},
        },
        "image_digest": environment.get("TREESPEC_IMAGE_DIGEST") or None,
        "platform": f"{platform.system()}-{platform.machine()}",
    }


def host_id() -> str | None:
    """Tells this host, since it was booted, from every other and says no more; alike in its containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return None
    return hashlib.sha256(boot).hexdigest()[:12]


def _device(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"device": "cpu", "device_name": _cpu_model(), "device_count": 1, "driver": None}
    import torch

    if not torch.cuda.is_available():
        raise UserError("engine.device", device, "cpu, since torch sees no CUDA device here")
    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    return {
        "device": device,
        "device_name": ", ".join(names),
        "device_count": count,
        "driver": _nvidia_driver(),
    }


def _nvidia_driver() -> str | None:
    """The driver's version from nvidia-smi; None where the tool is absent or fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return (done.stdout.split() or [None])[0]


def _cpu_model() -> str:
    """Name, family and model: a virtual machine's name alone ("AMD EPYC") is shared by generations."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _cpu_count() -> int:
    """Cores this process may use: its affinity, cut by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup_text("cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _memory_gib() -> int:
    """Memory of the machine or of the container, whichever is less, to a whole GiB."""
    import psutil

    total = psutil.virtual_memory().total
    limit = _cgroup_text("memory.max")
    if limit.isdigit():
        total = min(total, int(limit))
    return round(total / 2**30)


def _cgroup_text(name: str) -> str:
    try:
        return (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
