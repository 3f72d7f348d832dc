"""The vLLM engine of one arm: stock for the baseline, with the token-tree plugin where an arm needs it.

    llm = EnginePlan.of(params, max_num_seqs=1).start("models/target")                     # the baseline
    plan = EnginePlan.of(params, max_num_seqs=1, tree=TokenTree.chain(3))                  # an arm
    llm = plan.start("models/target", "models/draft")

A plan is made without vLLM and before any model is there, so that what cannot work is said at once.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.common.errors import UserError
from stages.common.model_limits import check_for_plugin, whole_draft_line
from stages.common.params import Params
from stages.common.processes import socket_folder, tie_engine_processes
from treespec.tree import TokenTree
from treespec.vllm_plugin import CPU_WORKER, CUDA_WORKER, VLLM_VERSION, installed_vllm

DEFAULT_BATCHED_TOKENS = 8192
FORWARD_TIMER = "stages.common.forward_timer.ForwardTimer"
STOCK_MAX_SPEC_LEN = 128  # vllm/v1/sample/rejection_sampler.py: MAX_SPEC_LEN

tie_engine_processes()


@dataclass(frozen=True)
class EnginePlan:
    """Arguments of `vllm.LLM` but for the models, and the environment they need."""

    arguments: dict[str, Any]
    environment: dict[str, str]
    uses_plugin: bool

    @classmethod
    def of(cls, params: Params, max_num_seqs: int, tree: TokenTree | None = None) -> EnginePlan:
        """Raises UserError where this vLLM, this device or these numbers cannot run the arm."""
        engine = params.engine
        if installed_vllm() != VLLM_VERSION:
            raise UserError("vllm", installed_vllm(), f"version {VLLM_VERSION}")
        stock = params.speculation.implementation == "stock"
        uses_plugin = tree is not None and not stock
        arguments: dict[str, Any] = {
            "dtype": engine.dtype,
            "seed": params.sampling.seed,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "pipeline_parallel_size": engine.pipeline_parallel_size,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": _batched_tokens(params, max_num_seqs, tree),
            "enforce_eager": engine.enforce_eager,
            "enable_prefix_caching": engine.enable_prefix_caching,
            "disable_log_stats": False,
            "load_format": "safetensors",  # never a pickle beside them
            "trust_remote_code": params.models.target in params.models.trust_remote_code,
            "worker_extension_cls": FORWARD_TIMER,
        }
        if engine.tensor_parallel_size * engine.pipeline_parallel_size > 1:
            arguments["distributed_executor_backend"] = engine.distributed_executor_backend
        if engine.device == "cuda":
            arguments["gpu_memory_utilization"] = engine.gpu_memory_utilization
        if tree is not None:
            _check_depth(tree, engine.max_model_len)
            arguments |= _speculation(params, tree, stock)
        if uses_plugin:
            check_plugin()
        _check_devices(params)
        return cls(arguments, _environment(params, uses_plugin), uses_plugin)

    @property
    def why_no_journal(self) -> str | None:
        """A new engine's prefix cache is empty: passes after a restart would be slower than they are."""
        return "engine.enable_prefix_caching" if self.arguments["enable_prefix_caching"] else None

    def start(self, target: str, draft: str | None = None) -> Any:
        """Load the models. Sets the process's environment first, since vLLM reads it on import."""
        os.environ.update(self.environment)
        if self.environment.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            os.environ["VLLM_RPC_BASE_PATH"] = str(socket_folder())
        from vllm import LLM

        arguments = {"model": target, **self.arguments}
        if "speculative_config" in arguments:
            arguments["speculative_config"] = {**arguments["speculative_config"], "model": draft}
        return LLM(**arguments)

    def check_models(self, target: Path, draft: str | None) -> None:
        """Raise UserError for what the plugin cannot run by its config.json; say what a whole draft costs."""
        if not self.uses_plugin:
            return
        draft = Path(draft)
        check_for_plugin("target", target)
        check_for_plugin("draft", draft)
        num_ranks = self.arguments["tensor_parallel_size"]
        if num_ranks > self.arguments["speculative_config"]["draft_tensor_parallel_size"]:
            print(whole_draft_line(target, draft, self.arguments["dtype"], num_ranks), file=sys.stderr)


def _check_depth(tree: TokenTree, max_model_len: int) -> None:
    if tree.depth + 1 >= max_model_len:
        expected = f"fewer than engine.max_model_len - 1 ({max_model_len - 1})"
        raise UserError("levels of the tree", tree.depth, expected)


def check_plugin() -> None:
    """Raise UserError unless the plugin that vLLM would load is this project's, installed once."""
    found = entry_points(group="vllm.general_plugins", name="treespec")
    values = sorted({entry.value for entry in found})
    if values != ["treespec.vllm_plugin:register"]:
        expected = (
            "treespec.vllm_plugin:register alone: install this project, and nothing that takes its name"
        )
        raise UserError("vLLM plugin treespec", values, expected)


def _speculation(params: Params, tree: TokenTree, stock: bool) -> dict[str, Any]:
    if params.engine.pipeline_parallel_size > 1:
        raise UserError(
            "engine.pipeline_parallel_size",
            params.engine.pipeline_parallel_size,
            "1 beside a draft model: vLLM 0.15.0 drafts on the last stage only, with that stage's layers",
        )
    config: dict[str, Any] = {
        "method": "draft_model",
        "num_speculative_tokens": tree.num_nodes,
        "draft_tensor_parallel_size": params.engine.draft_tensor_parallel_size,
        "enforce_eager": params.engine.enforce_eager,
    }
    if stock:
        if not tree.is_chain:
            raise UserError(
                "speculation.implementation", "stock", "treespec: stock vLLM 0.15.0 ignores trees"
            )
        if tree.num_nodes > STOCK_MAX_SPEC_LEN:
            raise UserError(
                "num_speculative_tokens", tree.num_nodes, f"at most {STOCK_MAX_SPEC_LEN} with stock"
            )
        return {"speculative_config": config}
    config["speculative_token_tree"] = str(list(tree.paths))
    worker = CPU_WORKER if params.engine.device == "cpu" else CUDA_WORKER
    arguments = {
        "speculative_config": config,
        "worker_cls": worker,
        "async_scheduling": False,
        "additional_config": {"treespec": {"draft_sampling": params.speculation.draft_sampling}},
    }
    if params.engine.device == "cuda":
        arguments["attention_config"] = {"backend": "CUSTOM"}
    return arguments


def _batched_tokens(params: Params, max_num_seqs: int, tree: TokenTree | None) -> int:
    """Tokens of one step: enough for every sequence to verify its whole tree."""
    needed = max_num_seqs * (tree.num_nodes + 1 if tree else 1)
    asked = params.engine.max_num_batched_tokens
    if asked is None:
        return max(DEFAULT_BATCHED_TOKENS, needed)
    if asked < needed:
        nodes = tree.num_nodes if tree else 0
        raise UserError(
            "engine.max_num_batched_tokens",
            asked,
            f"at least {needed}: {max_num_seqs} sequences x ({nodes} + 1)",
        )
    return asked


def _environment(params: Params, uses_plugin: bool) -> dict[str, str]:
    environment = {
        # The baseline is stock: no plugin of anybody's is loaded into it.
        "VLLM_PLUGINS": "treespec" if uses_plugin else "",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "HF_HUB_OFFLINE": "1",  # every model is on this disk by now
        "TOKENIZERS_PARALLELISM": "false",
    }
    if params.engine.device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(params.engine.kv_cache_gib))
        environment |= _cpu_threads(params.engine.tensor_parallel_size)
    if params.engine.tensor_parallel_size * params.engine.pipeline_parallel_size == 1:
        # One process: on a small machine the engine's own process would take a core from the model.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment


def _cpu_threads(num_ranks: int) -> dict[str, str]:
    """Every rank's CPUs, where vLLM would find none: on its own it gives each rank a NUMA node."""
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    if num_ranks <= max(nodes, 1) or "VLLM_CPU_OMP_THREADS_BIND" in os.environ:
        return {}
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    if len(cpus) < num_ranks:
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    share = len(cpus) // num_ranks
    parts = [",".join(cpus[rank * share : (rank + 1) * share]) for rank in range(num_ranks)]
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(parts)}


def _check_devices(params: Params) -> None:
    engine = params.engine
    if engine.distributed_executor_backend == "ray":
        if engine.device == "cpu":
            raise UserError("engine.distributed_executor_backend", "ray", "mp on cpu, as vLLM 0.15.0 has it")
        if find_spec("ray") is None:
            raise UserError("engine.distributed_executor_backend", "ray", "mp: Ray is not installed here")
    if engine.device == "cpu":
        if not _is_cpu_build():
            raise UserError("engine.device", "cpu", "cuda: this is the CUDA build of vLLM")
        return
    if _is_cpu_build():
        raise UserError("engine.device", "cuda", "cpu: this is the CPU build of vLLM")
    import torch

    found = torch.cuda.device_count()
    if found == 0:
        raise UserError("engine.device", "cuda", "cpu: no GPU was found (docker run needs --gpus all)")
    needed = engine.tensor_parallel_size * engine.pipeline_parallel_size
    if engine.distributed_executor_backend == "mp" and found < needed:
        stages = engine.pipeline_parallel_size
        raise UserError(
            "engine.tensor_parallel_size",
            engine.tensor_parallel_size,
            f"at most {found // stages}: {found} GPUs are here, for {stages} pipeline stages",
        )


def _is_cpu_build() -> bool:
    """By its distribution: to ask vLLM is to import it, which is slow and reads the environment for good."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return "cpu" in version("vllm")
