"""Real vLLM engines on CPU, float32, in a process of their own, one a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_models import make_llama

os.environ.update(
    {
        "VLLM_PLUGINS": "treespec",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads that wait for each other gain a tiny model nothing
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "tests/engine" in str(item.path):
            item.add_marker(pytest.mark.engine)


@contextmanager
def running_engine(
    target: Path, draft: Path, tree, draft_tensor_parallel_size: int = 1, **arguments
) -> Iterator:
    """A token-tree engine whose largest tree is `tree`; ends with its process."""
    from vllm import LLM

    from treespec.vllm_plugin import CPU_WORKER

    llm = LLM(
        model=str(target),
        dtype="float32",
        disable_log_stats=False,
        **{"worker_cls": CPU_WORKER, "enforce_eager": True, "max_model_len": 256, **arguments},
        speculative_config={
            "method": "draft_model",
            "model": str(draft),
            "num_speculative_tokens": tree.num_nodes,
            "speculative_token_tree": str(list(tree.paths)),
            "draft_tensor_parallel_size": draft_tensor_parallel_size,
        },
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory) -> Path:
    """A random Llama whose greedy text wanders instead of repeating itself."""
    folder = tmp_path_factory.mktemp("target")
    make_llama(folder, num_layers=2, seed=3, head_dim=32, initializer_range=0.25, tie_word_embeddings=False)
    return folder


@pytest.fixture(scope="session")
def tiny_draft(tiny_target: Path, tmp_path_factory) -> Path:
    """The target with noise on its weights: it agrees often, not always."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("draft")
    shutil.copytree(tiny_target, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    noisy = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Client:
    """Asks one engine the same thing with and without drafting."""

    def __init__(self, llm):
        self.llm = llm

    def generate(self, prompts, tree=None, **params) -> list[list[int]]:
        """Token ids; `tree` is a TokenTree, "none" for no drafting, None for the engine's own tree."""
        return [list(output.outputs[0].token_ids) for output in self.outputs(prompts, tree, **params)]

    def outputs(self, prompts, tree=None, **params):
        from vllm import SamplingParams

        asked = {} if tree is None else {"treespec": {"tree": tree if tree == "none" else list(tree.parents)}}
        each = params.pop("each", [{}] * len(prompts))
        options = [
            SamplingParams(**{"temperature": 0, "max_tokens": 40, **params, **own}, extra_args=asked)
            for own in each
        ]
        return self.llm.generate([{"prompt_token_ids": p} for p in prompts], options, use_tqdm=False)

    def counters(self):
        from stages.common.counters import Counters

        return Counters.read(self.llm)

    def metric(self, name: str) -> int:
        return next((int(m.value) for m in self.llm.get_metrics() if m.name == f"vllm:{name}"), 0)

    def stats(self) -> dict:
        return self.llm.collective_rpc("treespec_stats", args=(True,))[0]
