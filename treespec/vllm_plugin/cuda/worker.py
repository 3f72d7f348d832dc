"""The CUDA worker and runner: stock's, with captured graphs that can attend along a tree.

A captured decode step has num_speculative_tokens + 1 tokens a request and reads its tree from one bias
tensor, so it serves any batch whose requests all carry a whole tree of that size and the same one; chains
and plain decoding are trees too. A batch of several trees, or one that mixes trees and prompts, runs
without a full graph.
"""

from __future__ import annotations

from vllm import envs
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.worker import gpu_model_runner, gpu_worker
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from treespec.tree import TokenTree
from treespec.vllm_plugin.cuda.attention import TreeTritonBuilder
from treespec.vllm_plugin.cuda.device import CUDADevice
from treespec.vllm_plugin.runner import TreeRunnerMixin, tree_proposer
from treespec.vllm_plugin.worker import TreeWorkerMixin, check_config

BACKEND = "treespec.vllm_plugin.cuda.attention.TreeTritonBackend"


class CUDATreeRunner(TreeRunnerMixin, GPUModelRunner):
    def __init__(self, vllm_config, device):
        self.tree_device = CUDADevice()
        with tree_proposer():
            super().__init__(vllm_config, device)
        self.init_trees()
        # An engine of chains keeps stock's graphs, which spare the kernel the bias.
        self._graphs_bend = not self.drafter.tree.is_chain

    def _determine_batch_execution_and_padding(
        self, *args, use_cascade_attn=False, force_uniform_decode=None, **kwargs
    ):
        dummy = force_uniform_decode is not None  # only dummy runs say so, warm-up and capture among them
        tree = None if dummy else self._common_tree()
        fits = dummy or (tree is not None and (tree.is_chain or self._graphs_bend))
        # Cascade attention is stock's one reason for "no full graph, a piecewise one will do".
        result = super()._determine_batch_execution_and_padding(
            *args,
            use_cascade_attn=use_cascade_attn or not fits,
            force_uniform_decode=force_uniform_decode,
            **kwargs,
        )
        if not dummy and self._graphs_bend and result[0] == CUDAGraphMode.FULL:
            for builder, _ in self._target_builders():
                builder.show(tree)
        return result

    def capture_model(self) -> int:
        size = super().capture_model()
        if self.drafter.steady is not None:
            num_blocks = self.input_batch.block_table[0].get_device_tensor(1).shape[1]
            with self.drafter.in_draft_group():
                self.drafter.steady.capture(self.drafter.tree, num_blocks)
        return size

    def _common_tree(self) -> TokenTree | None:
        """The tree along which every row of the step attends; None: there are several."""
        queries = self.round.queries if self.round else None
        if queries is None:
            return TokenTree.chain(self.drafter.tree.num_nodes)
        trees = set(queries.trees)
        return trees.pop() if queries.covers_all and len(trees) == 1 else None

    def _build_attention_metadata(self, *args, **kwargs):
        metadata, common = super()._build_attention_metadata(*args, **kwargs)
        if self._graphs_bend and kwargs.get("num_scheduled_tokens") is None:  # a dummy run
            for builder, layer in self._target_builders():
                builder.attend_graph_tree(metadata[layer], self.drafter.tree.num_nodes)
        return metadata, common

    def _target_builders(self) -> list[tuple[TreeTritonBuilder, str]]:
        """The target's metadata builders, each with one of its layers."""
        draft_layers = set(self.drafter.attn_layer_names)
        return [
            (group.get_metadata_builder(), group.layer_names[0])
            for group in self.attn_groups[0]
            if group.layer_names[0] not in draft_layers
        ]


class CUDATreeWorker(TreeWorkerMixin, gpu_worker.Worker):
    def __init__(self, vllm_config, *args, **kwargs):
        check_config(vllm_config)
        check_cuda_config(vllm_config)
        register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
        vllm_config.attention_config.backend = AttentionBackendEnum.CUSTOM
        super().__init__(vllm_config, *args, **kwargs)

    def init_device(self) -> None:
        stock = gpu_model_runner.GPUModelRunner
        gpu_model_runner.GPUModelRunner = CUDATreeRunner  # `Worker.init_device` imports it by name
        try:
            super().init_device()
        finally:
            gpu_model_runner.GPUModelRunner = stock


def check_cuda_config(config: VllmConfig) -> None:
    """Raise ValueError with one line for what the CUDA room does not do."""
    if envs.VLLM_USE_V2_MODEL_RUNNER:
        raise ValueError("treespec: VLLM_USE_V2_MODEL_RUNNER 1; expected 0")
    backend = config.attention_config.backend
    if backend not in (None, AttentionBackendEnum.CUSTOM):
        raise ValueError(
            f"treespec: attention_config.backend {backend.name}; expected none or CUSTOM, "
            "the plugin brings a Triton backend that attends along trees"
        )
    if config.compilation_config.cudagraph_mode == CUDAGraphMode.FULL:
        raise ValueError(
            "treespec: cudagraph_mode FULL; expected FULL_DECODE_ONLY, FULL_AND_PIECEWISE, PIECEWISE or "
            "NONE, a graph of mixed lengths cannot attend along a tree"
        )
    if config.parallel_config.use_ubatching:
        raise ValueError("treespec: dual batch overlap; expected enable_dbo False")
