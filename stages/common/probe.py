"""How fast this machine is right now: memory bandwidth and matrix multiplication, in about a second.

    measure_probe("cpu")
    {"memory_bandwidth_gb_per_s": 38.2, "matmul_tflop_per_s": {"bfloat16": 0.9, ...}, "when": "..."}

Each arm probes before and after its passes, so that a machine that slowed down meanwhile shows; and the best
possible time per token is the weights' bytes over this bandwidth. Every figure is the best of several tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

_FLOAT_BYTES = 4
# Far beyond the last cache, so that memory is what is measured; the matrix is large enough to fill the units.
_READ_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
_MATMUL_DTYPES = {"cpu": ("bfloat16", "float32"), "cuda": ("bfloat16", "float16", "float32")}
_MIN_TRIES = 3


def measure_probe(device: str, seconds: float = 0.5) -> dict[str, Any]:
    """Bandwidth in GB/s, matmul rate in TFLOP/s by dtype, and when. `device` is cpu or cuda.

    `seconds` is the time spent measuring, half of it on bandwidth; set-up and the least number of tries
    come on top.
    """
    dtypes = _MATMUL_DTYPES[device]
    bandwidth = _memory_bandwidth(device, seconds / 2)
    matmul = {dtype: _matmul_rate(device, dtype, seconds / 2 / len(dtypes)) for dtype in dtypes}
    return {
        "memory_bandwidth_gb_per_s": round(bandwidth / 1e9, 2),
        "matmul_tflop_per_s": {dtype: round(rate / 1e12, 3) for dtype, rate in matmul.items()},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _memory_bandwidth(device: str, seconds: float) -> float:
    """Bytes a second, the better of a sum, which reads one array, and a triad: two read, one written."""
    import torch

    count = _READ_BYTES[device] // _FLOAT_BYTES
    source = torch.ones(count, device=device)
    read = count * _FLOAT_BYTES / _best_time(lambda: source.sum(), device, seconds / 2)
    third = count // 3
    first, second, result = source[:third], source[third : 2 * third], source[2 * third : 3 * third]
    triad_time = _best_time(lambda: torch.add(first, second, alpha=2, out=result), device, seconds / 2)
    return max(read, 3 * third * _FLOAT_BYTES / triad_time)


def _matmul_rate(device: str, dtype: str, seconds: float) -> float:
    """Floating-point operations a second of a square matrix product: 2 n^3 a product."""
    import torch

    size = _MATRIX_SIZE[device]
    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    right = left.clone()
    return 2 * size**3 / _best_time(lambda: left @ right, device, seconds)


def _best_time(work: Callable[[], Any], device: str, seconds: float) -> float:
    """The shortest of at least three timed runs within `seconds`, after an untimed one."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    wait()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < _MIN_TRIES or time.perf_counter() < deadline:
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return min(times)
