"""What a step costs on a GPU: stock vLLM's chain, the plugin's chain, trees; eager and with CUDA graphs.

    python tests/gpu/speed.py --out speed.json [--seconds 420]

Dummy weights of Llama 8B (target) and 1B (draft) shapes in bf16: what is accepted means nothing, what a step
costs does. step_ms is the wall time of decoding over the number of steps; the parts are the plugin's own
event times a step; overhead is what of the step is neither target nor draft.
"""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from engines import ON_GPU, running, shaped_tree
from sections import Sections, command_line

from treespec.tree import TokenTree

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 8192, "vocab_size": 128256, "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
TARGET = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
DRAFT = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}  # fmt: skip
REHEARSAL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256}  # fmt: skip
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BATCHES = (1, 8)
NUM_TOKENS, REPEATS = (64, 3) if ON_GPU else (12, 1)


def write_shape(folder: Path, shape: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, **shape, **({} if ON_GPU else REHEARSAL)}))
    return folder


def prompts(batch: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(batch)
    return [torch.randint(3, 250, (128,), generator=draw).tolist() for _ in range(batch)]


def forward_ms(client) -> dict[int, dict[str, float]]:
    """Time of the target's forward by number of tokens, one a sequence; and of its logits."""
    runner = client.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    model = runner.model
    spans: list[float] = []

    def timed(call):
        def stamped(*args, **kwargs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = call(*args, **kwargs)
            end.record()
            end.synchronize()
            spans.append(start.elapsed_time(end))
            return result

        return stamped

    def median(call, *args, **kwargs) -> float:
        spans.clear()
        for _ in range(13):
            call(*args, **kwargs)
        return statistics.median(spans[3:])

    results = {}
    for count in COUNTS:
        hidden = torch.zeros(count, TARGET["hidden_size"], dtype=torch.bfloat16, device="cuda")
        with torch.inference_mode():
            runner.model = timed(model)
            try:
                forward = median(runner._dummy_run, count, uniform_decode=True, skip_eplb=True)
            finally:
                runner.model = model
            results[count] = {"forward_ms": forward, "logits_ms": median(timed(model.compute_logits), hidden)}
    return results


def step_cost(client, batch: int, tree=None) -> dict:
    """Means over the steps of decoding NUM_TOKENS tokens; the quickest of REPEATS."""
    best = None
    client.generate(prompts(batch), tree, max_tokens=8)
    for _ in range(REPEATS):
        begun = time.perf_counter()
        client.generate(prompts(batch), tree, max_tokens=1)
        prefill_s = time.perf_counter() - begun
        if not client.stock:
            client.stats()
        before = client.counters()
        begun = time.perf_counter()
        client.generate(prompts(batch), tree, max_tokens=NUM_TOKENS)
        decode_s = time.perf_counter() - begun - prefill_s
        counters = client.counters().since(before)
        steps = counters.num_steps - 1  # the prompt's
        row = {
            "step_ms": 1e3 * decode_s / steps,
            "steps": steps,
            "tokens_per_step": (NUM_TOKENS - 1) / steps,
        }
        if not client.stock:
            stats = client.stats()
            per_step = {part: ms / stats["num_steps"] for part, ms in stats["total_ms"].items()}
            models = per_step["target_forward"] + per_step["draft_forward"]
            row |= {f"{part}_ms": ms for part, ms in per_step.items()}
            row["draft_passes"] = stats["num_draft_passes"] / stats["num_steps"]
            row["overhead"] = 1 - models / row["step_ms"]
        if best is None or row["step_ms"] < best["step_ms"]:
            best = row
    return best


def host_calls(client, tree=None) -> dict[str, float]:
    """CUDA calls a step on the host, from the profiler: waits, copies, launches."""
    from torch.profiler import ProfilerActivity, profile

    client.generate(prompts(1), tree, max_tokens=4)
    before = client.counters()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        client.generate(prompts(1), tree, max_tokens=16)
    steps = client.counters().since(before).num_steps
    names = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync",
             "cudaLaunchKernel", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")  # fmt: skip
    counts = {event.key: event.count for event in profiler.key_averages()}
    return {name: counts[name] / steps for name in names if name in counts}


def host_profile(client, steps: int = 60) -> str:
    """Where the host's time goes while it decodes: Python's own profile, the costliest first."""
    client.generate(prompts(1), max_tokens=4)
    profiler = cProfile.Profile()
    profiler.runcall(client.generate, prompts(1), max_tokens=steps)
    text = io.StringIO()
    statistics_ = pstats.Stats(profiler, stream=text)
    statistics_.sort_stats("cumulative").print_stats(45)
    statistics_.sort_stats("tottime").print_stats(25)
    return text.getvalue()


def main() -> int:
    parser = command_line(__doc__, 420)
    parser.add_argument("--look", action="store_true", help="print profiles of the host, too")
    arguments = parser.parse_args()
    sections = Sections(arguments.out, arguments.seconds, arguments.only)
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    target, draft = write_shape(folder / "target", TARGET), write_shape(folder / "draft", DRAFT)
    common = {"dtype": "bfloat16", "load_format": "dummy", "max_num_batched_tokens": 4096}
    trees = {"16 nodes": shaped_tree(16, 5), "64 nodes": shaped_tree(64, 6)}

    def baseline(add):
        limits = {**common, "max_num_seqs": 512, "max_num_batched_tokens": 8192} if ON_GPU else common
        with running(target, graphs=list(COUNTS), **limits) as client:
            for batch in BATCHES:
                add(arm="baseline", graphs=True, batch=batch, **step_cost(client, batch))
            if ON_GPU:
                for count, cost in forward_ms(client).items():
                    add(arm=f"forward {count}", graphs=True, **cost)

    def arm(name: str, tree: TokenTree, stock: bool = False, graphs: bool = True, look: bool = False):
        def section(add):
            sizes = list(BATCHES) if graphs and ON_GPU else None
            with running(target, draft, tree, stock=stock, graphs=sizes, **common) as client:
                for batch in BATCHES if graphs else BATCHES[:1]:
                    add(arm=name, graphs=graphs, batch=batch, **step_cost(client, batch))
                if look and ON_GPU:
                    print(host_profile(client), flush=True)
                    add(arm=f"{name}, host calls a step", graphs=graphs, batch=1, calls=host_calls(client))

        return section

    chain = TokenTree.chain(5)
    plans = [
        ("plugin chain 5, graphs", arm("plugin chain 5", chain, look=arguments.look), 60),
        ("stock chain 5, graphs", arm("stock chain 5", chain, stock=True, look=arguments.look), 60),
        ("plugin 16 nodes, graphs", arm("plugin 16 nodes", trees["16 nodes"], look=arguments.look), 60),
        ("plugin 64 nodes, graphs", arm("plugin 64 nodes", trees["64 nodes"]), 60),
        ("plugin chain 5, eager", arm("plugin chain 5", chain, graphs=False), 60),
        ("stock chain 5, eager", arm("stock chain 5", chain, stock=True, graphs=False), 60),
        ("plugin chain 3, graphs", arm("plugin chain 3", TokenTree.chain(3)), 60),
    ]
    sections.run("baseline and target forward, graphs", baseline, 60)
    for name, section, seconds in plans if ON_GPU else [plans[0], plans[2]]:
        sections.run(name, section, seconds)
    sections.print_table()
    temporary.cleanup()
    return 0 if sections.ok else 1


if __name__ == "__main__":
    sys.exit(main())
