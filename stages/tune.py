"""The fastest honest baseline: the target alone, timed over dtype, compilation and threads.

    python -m stages.tune
    python -m stages.tune --dtypes bfloat16 float32 --threads 1 2 --rounds 3

Not a stage. Every setting runs `stages.baseline` at batch 1 in a process of its own, once a round, so that a
machine that drifts meets all of them; the median of the rounds counts. Prints a table and writes
results/tuning.json: every setting with its times, the fastest, and how far from it params.yaml's is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.common.environment import describe_machine
from stages.common.errors import UserError, run_cli
from stages.common.files import read_json, write_json
from stages.common.options import DATA_FOLDER, plain_parser
from stages.common.params import Params, load_params, override

DTYPES = ("bfloat16", "float16", "float32")


class Setting(NamedTuple):
    dtype: str
    enforce_eager: bool
    threads: int

    def __str__(self) -> str:
        mode = "eager" if self.enforce_eager else "compiled"
        return f"{self.dtype}, {mode}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def main() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    flags = plain_parser("stages.tune", __doc__)
    flags.add_argument("--gsm8k", type=Path, default=DATA_FOLDER, metavar="DIR", help="default: %(default)s")
    flags.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="default: all three")
    flags.add_argument(
        "--threads",
        nargs="+",
        type=int,
        default=sorted({1, len(cpus)}),
        metavar="N",
        help="OpenMP threads, one a CPU; default: 1 and all (%(default)s)",
    )
    flags.add_argument("--num-prompts", type=int, default=4, metavar="N", help="default: %(default)s")
    flags.add_argument("--max-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    flags.add_argument("--rounds", type=int, default=2, metavar="N", help="default: %(default)s")
    arguments = flags.parse_args()
    params = load_params(arguments.params)
    check(params, arguments, len(cpus))
    settings = [Setting(*one) for one in product(arguments.dtypes, (False, True), arguments.threads)]
    times: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for round_number in range(arguments.rounds):
        for setting in settings:
            times[setting].append(time_baseline(params, setting, cpus, arguments))
            print(f"round {round_number + 1}: {setting}: {times[setting][-1]:.2f} ms a token", flush=True)
    found = summarise(times, params, len(cpus)) | {
        "num_prompts": arguments.num_prompts,
        "max_tokens": arguments.max_tokens,
        "model": params.models.target,
        "environment": describe_machine(params.engine.device),
    }
    write_json(arguments.results / "tuning.json", found)
    show(found, arguments.results / "tuning.json")


def check(params: Params, arguments: argparse.Namespace, num_cpus: int) -> None:
    """UserError before anything is loaded."""
    if params.engine.device != "cpu":
        raise UserError("engine.device", params.engine.device, "cpu: threads are tuned there")
    for name, values in (("--threads", arguments.threads), ("--rounds", [arguments.rounds])):
        most = num_cpus if name == "--threads" else 100
        wrong = [value for value in values if not 1 <= value <= most]
        if wrong:
            raise UserError(name, wrong[0], f"1 to {most}")


def time_baseline(params: Params, setting: Setting, cpus: list[int], arguments: argparse.Namespace) -> float:
    """Milliseconds a token of one run of `stages.baseline`; UserError where it fails."""
    changed = override(
        params,
        {
            "engine.dtype": setting.dtype,
            "engine.enforce_eager": setting.enforce_eager,
            "engine.max_num_seqs": [1],
            "dataset.num_prompts": arguments.num_prompts,
            "sampling.max_tokens": arguments.max_tokens,
            "sampling.temperature": 0.0,
        },
    )
    bound = ",".join(map(str, cpus[: setting.threads]))
    with tempfile.TemporaryDirectory(prefix="treespec-tune-") as name:
        results, file = Path(name) / "results", Path(name) / "params.yaml"
        results.mkdir()
        file.write_text(yaml.safe_dump(changed.model_dump(mode="json")), encoding="utf-8")
        if (arguments.results / "models.json").is_file():
            shutil.copy(arguments.results / "models.json", results)
        command = [sys.executable, "-m", "stages.baseline", "--params", str(file), "--results", str(results)]
        done = subprocess.run(
            [*command, "--gsm8k", str(arguments.gsm8k)],
            env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": bound},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(str(setting), last, "a baseline that runs")
        return read_json(results / "baseline/b1/metrics.json")["time_per_token_ms"]


def summarise(times: dict[Setting, list[float]], params: Params, num_cpus: int) -> dict[str, Any]:
    """All settings, fastest first; the one of params uses every CPU, as vLLM does unless told otherwise."""
    medians = {setting: statistics.median(ms) for setting, ms in times.items()}
    order = sorted(medians, key=medians.get)
    ours = Setting(params.engine.dtype, params.engine.enforce_eager, num_cpus)
    return {
        "settings": [
            {**one._asdict(), "time_per_token_ms": round(medians[one], 4), "rounds_ms": times[one]}
            for one in order
        ],
        "fastest": order[0]._asdict(),
        "params": ours._asdict(),
        "params_over_fastest": round(medians[ours] / medians[order[0]], 4) if ours in medians else None,
    }


def show(found: dict[str, Any], file: Path) -> None:
    fastest = found["settings"][0]["time_per_token_ms"]
    for row in found["settings"]:
        name = str(Setting(row["dtype"], row["enforce_eager"], row["threads"]))
        ms = row["time_per_token_ms"]
        print(f"{name:32} {ms:8.2f} ms a token   {ms / fastest:.2f} x the fastest")
    over = found["params_over_fastest"]
    said = "was not among them" if over is None else f"takes {over:.2f} x the fastest's time"
    ours = Setting(**found["params"])
    print(f"params.yaml's setting ({ours}) {said}; written: {file}")


if __name__ == "__main__":
    run_cli(main)
