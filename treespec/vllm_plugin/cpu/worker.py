"""The CPU worker and runner: stock's, with the drafter that stock asserts away."""

from __future__ import annotations

from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend
from vllm.v1.worker import cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner, _torch_cuda_wrapper
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from treespec.vllm_plugin.cpu.device import CPUDevice
from treespec.vllm_plugin.runner import TreeRunnerMixin, tree_proposer
from treespec.vllm_plugin.worker import TreeWorkerMixin, check_config


class CPUTreeRunner(TreeRunnerMixin, CPUModelRunner):
    def __init__(self, vllm_config, device):
        # CPUModelRunner.__init__ without its assertion that there is no speculation.
        self.tree_device = CPUDevice()
        with _torch_cuda_wrapper(), tree_proposer():
            GPUModelRunner.__init__(self, vllm_config, device)
        self.use_cuda_graph = False
        self.cascade_attn_enabled = False
        self._postprocess_tensors()
        self.init_trees()

    def load_model(self, eep_scale_up: bool = False) -> None:
        super().load_model(eep_scale_up)
        self.drafter.load_model(self.model)


class CPUTreeWorker(TreeWorkerMixin, cpu_worker.CPUWorker):
    def __init__(self, vllm_config, *args, **kwargs):
        check_config(vllm_config)
        # CpuPlatform offers one backend only; the registry lets us stand in for it in this process.
        register_backend(
            AttentionBackendEnum.CPU_ATTN, "treespec.vllm_plugin.cpu.attention.TreeAttentionBackend"
        )
        _cached_get_attn_backend.cache_clear()  # another engine of this process may have asked before
        super().__init__(vllm_config, *args, **kwargs)

    def init_device(self) -> None:
        stock = cpu_worker.CPUModelRunner
        cpu_worker.CPUModelRunner = CPUTreeRunner  # the class `CPUWorker.init_device` instantiates by name
        try:
            super().init_device()
        finally:
            cpu_worker.CPUModelRunner = stock
