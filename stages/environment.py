"""Stage environment: which machine this is, so that another one measures anew.

    python -m stages.environment
    python -m stages.environment --device cuda

Writes results/environment.json, a dependency of every timed stage and the same bytes at every run on one
machine: device, device_name, device_count, driver (null on cpu), cpu_model, cpu_count and memory_gib (what a
container is granted), versions {python, vllm, torch, transformers, dvc}, image_digest (from
TREESPEC_IMAGE_DIGEST, else null), platform. And results/probe.json, a dependency of nothing: how fast the
machine is at this moment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.common.environment import describe_machine
from stages.common.errors import Parser, run_cli
from stages.common.files import write_json
from stages.common.params import PARAMS_FILE, load_params
from stages.common.probe import measure_probe

ENVIRONMENT_FILE = Path("results/environment.json")
PROBE_FILE = Path("results/probe.json")


def main() -> None:
    parser = Parser(
        prog="python -m stages.environment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="params file (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="instead of engine.device")
    parser.add_argument("--out", type=Path, default=ENVIRONMENT_FILE, help="identity (default: %(default)s)")
    parser.add_argument("--probe", type=Path, default=PROBE_FILE, help="speed now (default: %(default)s)")
    arguments = parser.parse_args()
    device = arguments.device or load_params(arguments.params).engine.device
    identity = describe_machine(device)
    probe = measure_probe(device)
    write_json(arguments.out, identity)
    write_json(arguments.probe, probe)
    rates = ", ".join(f"{rate:g} ({dtype})" for dtype, rate in probe["matmul_tflop_per_s"].items())
    print(f"{identity['device_name']}, {identity['cpu_count']} cores, {identity['memory_gib']} GiB")
    print(f"{probe['memory_bandwidth_gb_per_s']:g} GB/s, TFLOP/s {rates}")


if __name__ == "__main__":
    run_cli(main)
