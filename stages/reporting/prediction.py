"""What the calibration foretells of the arms, from questions that none of them measures.

found = predict_arms(params, Path("results"), [ArmName("chain", "k3", 1)])
found["chain-k3-b1"].time_per_token_ms
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.calibration.model import FOLDER, Calibration
from stages.common.params import Params
from stages.common.trees import tree_file
from stages.reporting.load import ArmName
from treespec.tree import TokenTree


@dataclass(frozen=True)
class Prediction:
    """Of one arm at its main temperature, prompts and the batch's thinning out included."""

    time_per_token_ms: float


def predict_arms(params: Params, results: Path, arms: Iterable[ArmName]) -> dict[str, Prediction]:
    """By arm name. Nothing where there is no calibration, nor for children that are drawn at random: the
    recorded ranks say which of the likeliest tokens is accepted."""
    if not (results / FOLDER).is_dir():
        return {}
    if params.sampling.temperature[0] > 0 and params.speculation.draft_sampling == "probabilistic":
        return {}
    calibration = Calibration.read(results)
    found = {}
    for arm in arms:
        file = tree_file(results, arm.setting, arm.max_num_seqs)
        if arm.arm != "baseline" and not file.is_file():
            continue
        tree = None if arm.arm == "baseline" else TokenTree.from_file(file)
        ms = calibration.arm_ms_per_token(tree, arm.max_num_seqs, params.dataset.num_prompts)
        found[arm.name] = Prediction(ms)
    return found
