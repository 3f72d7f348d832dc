"""Stage baseline: the target alone on stock vLLM 0.15.0, no plugin loaded.

    python -m stages.baseline --max-num-seqs 1
    python -m stages.baseline --target-model M --tensor-parallel-size 4 --num-prompts 20 \\
        --max-tokens 256 --max-num-seqs 1 --gsm8k DIR

Writes results/baseline/b<max_num_seqs>/metrics.json and requests.parquet, and prints a summary.
"""

from __future__ import annotations

from stages.common import options, summary
from stages.common.arm import Arm, run_arm
from stages.common.errors import run_cli


def main() -> None:
    arguments = options.parser("stages.baseline", __doc__).parse_args()
    params = options.read_params(arguments)
    arm = Arm.baseline(options.only_batch_size(params))
    plan = arm.plan(params)
    inputs = options.read_inputs(arguments, params, plan, with_draft=False)
    summary.show(run_arm(params, arm, plan, inputs, arguments.results))


if __name__ == "__main__":
    run_cli(main)
