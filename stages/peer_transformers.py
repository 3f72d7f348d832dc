"""Stage peer_transformers: the same pair and prompts in Hugging Face transformers, plain and assisted.

    python -m stages.peer_transformers

Greedy `generate()`, one prompt at a time, eager, in the dtype and with the threads that vLLM has; assisted
generation as transformers sets it up by default, which metrics.json names. Both ways answer a prompt one
right after the other, and which comes first alternates.

Writes results/peer_transformers/metrics.json and requests.parquet: one row a request, repeat and mode
(plain, assisted). One that died goes on after the last prompt that it answered both ways. Where
peers.transformers is false, or it cannot be compared, that is all that they say.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.common import gsm8k, metrics, options
from stages.common.errors import UserError, run_cli
from stages.common.failure import failure_noted
from stages.common.files import atomic_folder, write_json
from stages.common.fingerprint import marks_of
from stages.common.inputs import Inputs
from stages.common.journal import Journal, Piece, journal_of
from stages.common.params import Params
from stages.common.passes import Pass, judged, until_stop, write_requests
from stages.common.probe import measure_probe

MODES = ("plain", "assisted")
FOLDER = "peer_transformers"
ASSISTED_SETTINGS = (
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
)


def main() -> None:
    flags = options.parser("stages.peer_transformers", __doc__)
    options.add_draft_flags(flags)
    arguments = flags.parse_args()
    params = options.read_params(arguments, options.draft_values(arguments))
    folder = arguments.results / FOLDER
    if not params.peers.transformers:
        write(folder, {"asked": False}, [])
    elif reason := why_not(params):
        write(folder, {"asked": False, "reason": reason}, [])
    else:
        inputs = options.read_inputs(arguments, params, None)
        marks = marks_of(params, inputs, "transformers")
        with journal_of(arguments.results, FOLDER, marks) as journal:
            figures, passes = measure(params, inputs, folder, journal)
            write(folder, figures | {"marks": marks, "resumed": journal.resumed}, passes)


def why_not(params: Params) -> str | None:
    """What forbids the comparison, if anything does."""
    if params.sampling.temperature[0] != 0:
        return f"sampling.temperature is {params.sampling.temperature[0]:g}; compared is greedy decoding"
    if params.engine.tensor_parallel_size * params.engine.pipeline_parallel_size > 1:
        return "the target is spread over several GPUs; compared is one device"
    return None


@dataclass(frozen=True)
class Peer:
    """Both models in transformers, and the prompts."""

    target: Any
    draft: Any
    tokenizer: Any
    params: Params
    inputs: Inputs
    prompts: list[list[int]]

    @classmethod
    def load(cls, params: Params, inputs: Inputs) -> Peer:
        os.environ["HF_HUB_OFFLINE"] = "1"  # every model is on this disk by now
        import torch
        from transformers import AutoModelForCausalLM

        tokenizer, prompts = inputs.prompts(params)
        target, draft = (
            AutoModelForCausalLM.from_pretrained(
                inputs.path(role),
                dtype=getattr(torch, params.engine.dtype),
                use_safetensors=True,
                trust_remote_code=getattr(params.models, role) in params.models.trust_remote_code,
            )
            .to(params.engine.device)
            .eval()
            for role in ("target", "draft")
        )
        return cls(target, draft, tokenizer, params, inputs, prompts)

    def answer(self, index: int, repeat: int, mode: str) -> dict[str, Any]:
        """One request's row; its `e2e_ms` is the whole call. UserError if nothing was generated."""
        import torch

        prompt = torch.tensor([self.prompts[index]], device=self.target.device)
        assisted = {"assistant_model": self.draft} if mode == "assisted" else {}
        stops = gsm8k.stop_strings(self.params.dataset.prompt_format)
        if stops:
            assisted |= {"stop_strings": stops, "tokenizer": self.tokenizer}
        started = time.perf_counter()
        output = self.target.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=self._greedy(), **assisted
        )
        new_ids = output[0, prompt.shape[1] :].tolist()  # waits for the device
        seconds = time.perf_counter() - started
        stop = next((text for text in stops if text in self.tokenizer.decode(new_ids)), None)
        token_ids = until_stop(new_ids, stop, self.tokenizer.decode)
        if not token_ids:
            raise UserError(f"prompt {index}", mode, "an answer")
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return {
            "prompt_index": index,
            "repeat": repeat,
            "num_prompt_tokens": prompt.shape[1],
            "num_output_tokens": len(token_ids),
            "output_token_ids": token_ids,
            "finish_reason": "length" if len(new_ids) == self.params.sampling.max_tokens else "stop",
            "e2e_ms": seconds * 1e3,
            "ttft_ms": None,
            "tpot_ms": None,
            "temperature": 0.0,
            "mode": mode,
            **judged(self.inputs.rows[index], text.partition(stop)[0] if stop else text),
        }

    def _greedy(self) -> Any:
        """The model's own stop tokens, and nothing else of its settings, as vLLM takes them."""
        from transformers import GenerationConfig

        own = self.target.generation_config
        stop_ids = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.params.sampling.max_tokens,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0] if isinstance(stop_ids, list) else stop_ids,
        )


def measure(
    params: Params, inputs: Inputs, folder: Path, journal: Journal
) -> tuple[dict[str, Any], list[Pass]]:
    """The figures and every repeat's passes, plain and assisted; failed.json in `folder` on failure."""
    import torch
    import transformers

    with failure_noted(folder):
        if params.engine.device == "cpu":
            torch.set_num_threads(vllm_threads())
        probe_before = journal.keep("probe", lambda: measure_probe(params.engine.device))
        peer = Peer.load(params, inputs)
        passes = run_passes(peer, journal)
        probes = {"before": probe_before, "after": measure_probe(params.engine.device)}
    settings = peer.draft.generation_config
    return {
        "asked": True,
        **inputs.head(params, max_num_seqs=1),
        **{mode: metrics.times(passes[mode]) for mode in MODES},
        "assisted_settings": {name: getattr(settings, name) for name in ASSISTED_SETTINGS},
        "same_output": metrics.same_share(passes["assisted"], passes["plain"]),
        "num_threads": torch.get_num_threads(),
        "transformers_version": transformers.__version__,
        **inputs.tail(probes),
    }, [one for mode in MODES for one in passes[mode]]


def run_passes(peer: Peer, journal: Journal) -> dict[str, list[Pass]]:
    """measure.repeats passes a mode, after a warm-up outside the clock."""
    count, repeats = len(peer.prompts), peer.params.measure.repeats
    for index in range(min(peer.params.measure.warmup_prompts, count)):
        for mode in MODES:
            peer.answer(index, 0, mode)

    def both(repeat: int, index: int) -> Piece:
        order = MODES if (repeat + index) % 2 == 0 else reversed(MODES)
        return {mode: peer.answer(index, repeat, mode) for mode in order}

    rows: dict[tuple[str, int], list[dict[str, Any]]] = {(m, r): [] for m in MODES for r in range(repeats)}
    turns = [(repeat, index) for repeat in range(repeats) for index in range(count)]
    for repeat, index in tqdm(turns, desc="transformers", unit="prompt"):
        name = f"repeat {repeat}, prompt {index}"
        piece = journal.once(name, partial(both, repeat, index))
        for mode in MODES:
            rows[mode, repeat].append(piece[mode])
    return {mode: [_pass(repeat, rows[mode, repeat]) for repeat in range(repeats)] for mode in MODES}


def _pass(repeat: int, requests: list[dict[str, Any]]) -> Pass:
    return Pass(repeat, sum(request["e2e_ms"] for request in requests) / 1e3, requests)


def vllm_threads() -> int:
    """Threads of vLLM's CPU worker: one a core of its first NUMA node, unless it is told otherwise."""
    import torch

    binding = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if binding == "nobind":
        return torch.get_num_threads()
    if binding != "auto":  # "0-3,6|8-11": what is before the bar is the first worker's
        spans = [part.split("-") for part in binding.partition("|")[0].split(",")]
        return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)
    from vllm.platforms.cpu import CpuPlatform

    nodes, cpus = CpuPlatform.get_allowed_cpu_core_node_list()
    return len({cpu.physical_core for cpu in cpus if cpu.numa_node == nodes[0]})


def write(folder: Path, figures: dict[str, Any], passes: list[Pass]) -> None:
    """metrics.json and requests.parquet in `folder`, and a line a mode for people."""
    with atomic_folder(folder) as written:
        write_json(written / "metrics.json", figures)
        write_requests(passes, written / "requests.parquet", ("mode",))
    if not figures["asked"]:
        print(f"{folder}: not measured: {figures.get('reason', 'peers.transformers is false')}")
        return
    for mode in MODES:
        print(f"transformers {mode:9} {figures[mode]['time_per_token_ms']:8.2f} ms a token")
    print(f"same output: {figures['same_output']:.3f} of the answers")


if __name__ == "__main__":
    run_cli(main)
