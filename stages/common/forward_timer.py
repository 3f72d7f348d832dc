"""Times the target's forward pass of a stock engine, through vLLM's own `worker_extension_cls`.

Idle until asked, so that the passes that count run untouched code; used in one extra, uncounted pass.
"""

from __future__ import annotations

from time import perf_counter


class ForwardTimer:
    """Mixed into the worker class by vLLM; reached by `LLM.collective_rpc`."""

    def start_forward_timer(self) -> None:
        """Time from the model's first kernel to its logits, waiting for the device at both ends."""
        runner = self.model_runner
        self._forward_seconds: list[float] = []
        forward, sample = runner._model_forward, runner._sample

        def timed_forward(*args, **kwargs):
            runner._sync_device()
            self._forward_started = perf_counter()
            return forward(*args, **kwargs)

        def timed_sample(*args, **kwargs):
            runner._sync_device()
            self._forward_seconds.append(perf_counter() - self._forward_started)
            return sample(*args, **kwargs)

        runner._model_forward, runner._sample = timed_forward, timed_sample

    def stop_forward_timer(self) -> list[float]:
        """Seconds of every pass since the start, prompts included; the runner is as before."""
        runner = self.model_runner
        del runner._model_forward, runner._sample
        return self._forward_seconds
