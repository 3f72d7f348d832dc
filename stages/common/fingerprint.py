"""All that a measurement's numbers hang on, as one short digest a kind.

    marks_of(params, inputs, plan.arguments | plan.environment)
    {"params": "5f1c...", "models": ..., "questions": ..., "machine": ..., "code": ..., "engine": ...}

Two runs of equal marks are the same experiment in the same place. A mark that differs says what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stages.common
import treespec
from stages.common.inputs import Inputs
from stages.common.params import Params

# Blocks that say nothing of how one arm is measured; which arms there are is in speculation.
_ELSEWHERE = {"report": True, "distill": True, "calibration": True, "dataset": {"sources"}}
_ELSEWHERE |= {"speculation": {"chain", "tree"}, "measure": {"interleaved"}, "peers": True}
# What vLLM, its threads and its memory are told behind the arguments' back.
_VARIABLES = ("VLLM_", "OMP_", "MKL_", "KMP_", "NCCL_", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "MALLOC_CONF")


def marks_of(
    params: Params, inputs: Inputs, engine: Any, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """`engine`: all that the engine is started with, the trees included; JSON's types."""
    variables = {name: value for name, value in environment.items() if name.startswith(_VARIABLES)}
    return {
        "params": _digest(params.model_dump(mode="json", exclude=_ELSEWHERE)),
        "models": _digest(inputs.manifest),
        "questions": _digest([inputs.dataset_source, *map(list, inputs.rows)]),
        "machine": _digest([inputs.environment, variables]),
        "code": code_digest(),
        "engine": _digest(engine),
    }


def code_digest() -> str:
    """Of the Python files that a measuring stage lists in dvc.yaml: its own, stages/common and treespec."""
    digest = hashlib.sha256()
    for package in (stages.common, treespec):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    own = getattr(sys.modules["__main__"], "__file__", None)
    digest.update(Path(own).read_bytes() if own else b"")
    return digest.hexdigest()[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
