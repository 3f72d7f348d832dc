"""What measured costs foretell for Llama 70B with an 8B and a 1B draft, TP 4: predictions, no measurements.

    python tests/gpu/predicted.py [results/gpu/speed.json]        # writes predictions.json beside it

The curve of the 8B target's forward and the captured pass of the 1B draft are measured (speed.py). A model
of another size is taken to cost in proportion to the weights that one GPU reads, which leaves out the
all-reduces of TP 4. Acceptance is not measured here: 0.7 to 0.9 a token spans what is published for such
pairs on maths and code. Speedups as others measured them stand beside the predictions, with their source.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from treespec.cost import CostModel, chain_tokens
from treespec.tree import TokenTree

PARAMETERS = {"1B": 1.24e9, "8B": 8.03e9, "70B": 70.6e9}
TENSOR_PARALLEL = 4
MAX_CHAIN = 16
PUBLISHED = [
    "70B + draft model, TP 4, H100, GSM8K, k = 3, batch 1: 2.35x (SpecDecode-Bench, 2601.11580)",
    "70B + 1B, 2 x H100, InstructCoder, k = 8, batch 1: 3.55x (vLLM pull request 24322; "
    "its baseline of 43 ms is twice the roofline's)",
    "70B + 1B, 1 x H200: 3.55x (TensorRT-LLM)",
    "70B + 1B, 4 x H100, four data sets: 1.7x vLLM, 2.6x SGLang (2603.03251)",
]


def cost_of(speed: dict, draft: str, draft_tensor_parallel_size: int) -> CostModel:
    """The step of the 70B target with `draft`, scaled from the measured 8B and 1B shapes."""
    forwards = {
        int(row["arm"].split()[1]): row["forward_ms"] + row["logits_ms"]
        for row in speed["rows"]
        if row["arm"].startswith("forward ")
    }
    by_arm = {(row["arm"], row.get("batch"), row.get("graphs")): row for row in speed["rows"]}
    chain, baseline = by_arm["plugin chain 5", 1, True], by_arm["baseline", 1, True]
    pass_of_1b = chain["draft_forward_ms"] / chain["draft_passes"]
    target = {n: ms * PARAMETERS["70B"] / PARAMETERS["8B"] / TENSOR_PARALLEL for n, ms in forwards.items()}
    whole = {"1B": pass_of_1b, "8B": forwards[1]}[draft]
    return CostModel(
        target_ms=target,
        draft_ms={1: whole / draft_tensor_parallel_size},
        overhead_ms=chain["step_ms"] - chain["target_forward_ms"] - chain["draft_forward_ms"],
        baseline_overhead_ms=max(0.0, baseline["step_ms"] - forwards[1]),
    )


def main() -> None:
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "results/gpu/speed.json")
    speed = json.loads(source.read_text())
    rows = []
    for draft, size in (("1B", 1), ("8B", 1), ("8B", 4)):
        cost = cost_of(speed, draft, size)
        for acceptance in (0.7, 0.8, 0.9):
            speedups = {
                k: cost.speedup(TokenTree.chain(k), chain_tokens(acceptance, k))
                for k in range(1, MAX_CHAIN + 1)
            }
            best = max(speedups, key=speedups.get)
            rows.append(
                {
                    "draft": draft,
                    "draft_tensor_parallel_size": size,
                    "acceptance": acceptance,
                    "best_k": best,
                    "predicted_speedup": round(speedups[best], 2),
                    "predicted_speedup_k3": round(speedups[3], 2),
                }
            )
    record = {"kind": "prediction", "from": speed["identity"], "rows": rows, "published": PUBLISHED}
    source.with_name("predictions.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(*PUBLISHED, sep="\n")


if __name__ == "__main__":
    main()
