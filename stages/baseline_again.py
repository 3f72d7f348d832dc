"""Stage baseline_again: one more pass of the baseline when all arms are done, since machines drift.

    python -m stages.baseline_again --max-num-seqs 1

The same work as the baseline's, on stock vLLM, in an engine of its own, at the first temperature: how far it
lies from the first time tells how far two engines of a run lie apart (stages.reporting.drift).

Writes results/baseline_again/b<max_num_seqs>/metrics.json and requests.parquet.
"""

from __future__ import annotations

from pathlib import Path

from stages.common import metrics, options
from stages.common.arm import Arm
from stages.common.engine import EnginePlan
from stages.common.errors import run_cli
from stages.common.failure import failure_noted
from stages.common.files import atomic_folder, write_json
from stages.common.inputs import Inputs
from stages.common.params import Params
from stages.common.passes import Runner, write_requests
from stages.common.probe import measure_probe

FOLDER = "baseline_again"


def main() -> None:
    arguments = options.parser("stages.baseline_again", __doc__).parse_args()
    params = options.read_params(arguments)
    size = options.only_batch_size(params)
    plan = Arm.baseline(size).plan(params)
    inputs = options.read_inputs(arguments, params, plan, with_draft=False)
    figures = measure(params, inputs, plan, arguments.results / FOLDER / f"b{size}")
    print(f"{FOLDER} b{size}: {figures['time_per_token_ms']:.2f} ms a token")


def measure(params: Params, inputs: Inputs, plan: EnginePlan, folder: Path) -> dict:
    """Write `folder`; returns its figures. failed.json in it if the engine or a request fails."""
    tokenizer, prompts = inputs.prompts(params)
    size = plan.arguments["max_num_seqs"]
    with failure_noted(folder):
        probe_before = measure_probe(params.engine.device)
        runner = Runner(plan.start(inputs.path("target")), params, prompts, inputs.rows, tokenizer.decode)
        runner.warm_up()
        only = runner.run(0, f"{FOLDER} b{size}")
        probes = {"before": probe_before, "after": measure_probe(params.engine.device)}
    figures = {**inputs.head(params, size), **metrics.times([only]), **inputs.tail(probes)}
    figures["repeats"] = 1
    with atomic_folder(folder) as written:
        write_json(written / "metrics.json", figures)
        write_requests([only], written / "requests.parquet")
    return figures


if __name__ == "__main__":
    run_cli(main)
