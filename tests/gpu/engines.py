"""Engines that the GPU checks start: stock vLLM and the plugin, one a section and so one a process.

Without a GPU the same engines run with the CPU's worker and tiny models, to rehearse the scripts.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.update(
    {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
)

import torch

from stages.common.counters import Counters
from treespec.tree import TokenTree
from treespec.vllm_plugin import CPU_WORKER, CUDA_WORKER

torch.set_num_threads(1)  # threads of this process would be missing in those forked from it
ON_GPU = torch.cuda.is_available()  # by NVML, see above: CUDA must not start before the sections fork
UNDRAFTED = "none"


def shaped_tree(num_nodes: int, depth: int) -> TokenTree:
    """A tree of that size whose likeliest path is the deepest; what is left hangs off it, top first."""
    paths = [(0,) * level for level in range(1, depth + 1)]
    taken = set(paths)
    stems = [(0,) * level for level in range(depth)]
    while len(paths) < num_nodes:
        for stem in list(stems):
            rank = next(rank for rank in range(num_nodes) if (*stem, rank) not in taken)
            if len(paths) < num_nodes:
                paths.append((*stem, rank))
                taken.add(paths[-1])
                stems.append(paths[-1])
    return TokenTree.from_paths(paths)


def likeliest_depth(tree: TokenTree) -> int:
    """Nodes on the path of best children: what a draft that is the target gets accepted every step."""
    return (
        tree.trunk
        if tree.is_chain
        else next(
            (
                i
                for i, (parent, rank) in enumerate(zip(tree.parents[1:], tree.ranks[1:], strict=True))
                if parent != i
            ),
            tree.num_nodes,
        )
    )


@dataclass
class Client:
    """One running engine; `stock` engines know no trees of a request's own."""

    llm: object
    stock: bool

    def generate(self, prompts, tree=None, max_tokens=64, each=None, **params):
        """RequestOutputs. tree: TokenTree, "none", or None for the engine's own; each: one a prompt."""
        from vllm import SamplingParams

        def options(own):
            named = own if own in (None, UNDRAFTED) else list(own.parents)
            extra = None if named is None or self.stock else {"treespec": {"tree": named}}
            return SamplingParams(
                **{"temperature": 0, "ignore_eos": True, "detokenize": False, **params},
                max_tokens=max_tokens,
                extra_args=extra,
            )

        asked = [options(own) for own in (each or [tree] * len(prompts))]
        return self.llm.generate([{"prompt_token_ids": p} for p in prompts], asked, use_tqdm=False)

    def token_ids(self, *args, **kwargs) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in self.generate(*args, **kwargs)]

    def counters(self) -> Counters:
        return Counters.read(self.llm)

    def stats(self) -> dict:
        return self.llm.collective_rpc("treespec_stats", args=(True,))[0]

    def metric(self, name: str) -> int:
        return next((int(m.value) for m in self.llm.get_metrics() if m.name == f"vllm:{name}"), 0)


@contextmanager
def running(
    target: Path,
    draft: Path | None = None,
    tree: TokenTree | None = None,
    *,
    stock=False,
    graphs=None,
    draft_tp=1,
    **kw,
):
    """graphs: batch sizes to capture decode steps for, None: eager. Prints how long the start took."""
    from vllm import LLM

    begun = time.monotonic()
    query_len = tree.num_nodes + 1 if tree else 1
    arguments = {
        "model": str(target),
        "skip_tokenizer_init": True,
        "disable_log_stats": False,
        "enable_prefix_caching": False,
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "async_scheduling": False,
        "enforce_eager": graphs is None,
    }
    if ON_GPU:
        sizes = sorted(size * query_len for size in graphs or [])
        arguments |= {
            "gpu_memory_utilization": 0.3,  # only asked to be free at the start; the next line decides
            "kv_cache_memory_bytes": 8 << 30,
            "attention_config": {"backend": "CUSTOM" if draft and not stock else "TRITON_ATTN"},
            "compilation_config": {
                "custom_ops": ["none"],
                **(
                    {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes}
                    if graphs
                    else {}
                ),
            },
        }
    if draft:
        arguments["speculative_config"] = {
            "method": "draft_model",
            "model": str(draft),
            "num_speculative_tokens": tree.num_nodes,
            "draft_tensor_parallel_size": draft_tp,
        }
        if not stock:
            arguments["worker_cls"] = CUDA_WORKER if ON_GPU else CPU_WORKER
            arguments["speculative_config"]["speculative_token_tree"] = str(list(tree.paths))
    client = Client(LLM(**{**arguments, **kw}), stock or draft is None)
    print(f"  engine up in {time.monotonic() - begun:.1f} s", flush=True)
    try:
        yield client
    finally:
        client.llm.llm_engine.engine_core.shutdown()
