#!/usr/bin/env bash
# What only a GPU can show: the kernel, the plugin's output against stock vLLM's, what a step costs.
# Usage, from the repository's root: tests/gpu/run_all.sh [OUT_DIR]   (one GPU of 40 GB, about 12 minutes)
# SECONDS_EACH bounds each script; sections that do not fit are left out and named. With two GPUs a draft on
# one beside its target on two is checked as well; real_pair.py asks for a model and is run by hand.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-results/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/tests/unit${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
status=0
$python -m pytest tests/gpu/test_attention.py -q -p no:cacheprovider || status=1
scripts="correctness speed"
[ "$($python -c 'import torch; print(torch.cuda.device_count())')" -lt 2 ] || scripts="$scripts tensor_parallel"
for script in $scripts; do
  $python "tests/gpu/$script.py" --out "$out/$script.json" --seconds "${SECONDS_EACH:-420}" || status=1
done
$python tests/gpu/predicted.py "$out/speed.json" || status=1
exit $status
