"""Stage baseline_again: one more pass of the baseline when all arms are done, since machines drift.

    python -m stages.baseline_again --max-num-seqs 1

The same work as the baseline's, on stock vLLM, in an engine of its own, at the first temperature: how far it
lies from the first time tells how far two engines of a run lie apart (stages.reporting.drift).

Writes results/baseline_again/b<max_num_seqs>/metrics.json and requests.parquet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.common import metrics, options
from stages.common.arm import Arm
from stages.common.engine import EnginePlan
from stages.common.errors import run_cli
from stages.common.failure import failure_noted
from stages.common.files import atomic_folder, write_json
from stages.common.fingerprint import marks_of
from stages.common.inputs import Inputs
from stages.common.journal import journal_of
from stages.common.measured import measure
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
    figures = measure_again(params, inputs, plan, arguments.results, size)
    print(f"{FOLDER} b{size}: {figures['time_per_token_ms']:.2f} ms a token")


def measure_again(
    params: Params, inputs: Inputs, plan: EnginePlan, results: Path, size: int
) -> dict[str, Any]:
    """Write results/baseline_again/b<size>; returns its figures. failed.json there on failure."""
    tokenizer, prompts = inputs.prompts(params)
    device, name, folder = params.engine.device, f"{FOLDER}-b{size}", results / FOLDER / f"b{size}"
    marks = marks_of(params, inputs, [plan.arguments, plan.environment])
    with journal_of(results, name, marks, plan.why_no_journal) as journal, failure_noted(folder):
        probe_before = journal.keep("probe", lambda: measure_probe(device))
        runner = Runner(plan.start(inputs.path("target")), params, prompts, inputs.rows, tokenizer.decode)
        runner.warm_up()
        first = {"temperature": params.sampling.temperature[0], "max_num_seqs": size}
        again = measure(runner, journal, name, **first, uses_plugin=False, repeats=1)
        probes = {"before": probe_before, "after": measure_probe(device)}
        figures = {**inputs.head(params, size), **metrics.times(again.passes), **inputs.tail(probes)}
        figures |= {"repeats": 1, "marks": marks, "resumed": journal.resumed}
        with atomic_folder(folder) as written:
            write_json(written / "metrics.json", figures)
            write_requests(again.passes, written / "requests.parquet")
    return figures


if __name__ == "__main__":
    run_cli(main)
