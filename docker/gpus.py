"""Which GPUs a container was given, asked of NVIDIA's driver library itself.

    find_gpus()     # Gpus(names=("NVIDIA H200 140 GiB",), cuda=(12, 8), driver="570.86.15", failure=None)

libcuda is what the engine will load: it needs no torch, answers in a moment and names its errors.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True)
class Gpus:
    """`cuda` is the newest version the driver speaks; `failure` says why CUDA did not start."""

    names: tuple[str, ...] = ()
    cuda: tuple[int, int] | None = None
    driver: str | None = None
    failure: str | None = None

    def __str__(self) -> str:
        kinds = ", ".join(dict.fromkeys(self.names))
        found = f"{len(self.names)} GPU ({kinds})" if self.names else f"no GPU ({self.failure})"
        cuda = " (CUDA {}.{})".format(*self.cuda) if self.cuda else ""
        return f"{found}, driver {self.driver or 'none'}{cuda}"


def find_gpus() -> Gpus:
    """The GPUs that CUDA sees here. Never raises: what goes wrong is in `failure`."""
    driver = _kernel_driver()
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Gpus(driver=driver, failure="no libcuda.so.1")
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    cuda = (number.value // 1000, number.value % 1000 // 10)
    if code := library.cuInit(0):
        name = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(name))
        return Gpus(cuda=cuda, driver=driver, failure=f"{(name.value or b'error').decode()}, {code}")
    library.cuDeviceGetCount(ctypes.byref(number))
    return Gpus(tuple(_describe(library, ordinal) for ordinal in range(number.value)), cuda, driver)


def _describe(library: ctypes.CDLL, ordinal: int) -> str:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return f"{name.value.decode()} {size.value / GIB:.0f} GiB"


def _kernel_driver() -> str | None:
    """Version of the loaded kernel module: readable even in a container that was given no GPU."""
    try:
        return driver_of(Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None


def driver_of(text: str) -> str | None:
    """The version in "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release ..."."""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found and found[1]
