"""The CPU worker, drafting in fixed shapes as a GPU does from graphs; only the capture is left out."""

from __future__ import annotations

from treespec.vllm_plugin.cpu.device import CPUDevice
from treespec.vllm_plugin.cpu.worker import CPUTreeWorker
from treespec.vllm_plugin.cuda import graphs


class Uncaptured(graphs.CapturedDraft):
    @staticmethod
    def _captured(run, device):
        return run


class SteadyWorker(CPUTreeWorker):
    def init_device(self) -> None:
        graphs.CapturedDraft = Uncaptured  # in this process, the engine's own
        CPUDevice.steady_drafter = lambda self, levels, config: graphs.DraftGraphs(levels, config)
        super().init_device()
