"""What the calibration foretells of the arms, from questions that none of them measures.

found = predict_arms(params, Path("results"), [ArmName("chain", "k3", 1)])
found["chain-k3-b1"].value       # milliseconds a token, with low and high
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stages.calibration.model import FOLDER, Calibration
from stages.common.params import Params
from stages.common.trees import tree_file
from stages.reporting.load import ArmName
from stages.reporting.statistics import Ratio
from treespec.tree import TokenTree

DRAWS = 1000


def predict_arms(params: Params, results: Path, arms: Iterable[ArmName]) -> dict[str, Ratio]:
    """Time per token in ms by arm name, at the main temperature, prompts and a thinning batch included.

    The interval is that of arms of as many questions, drawn at random from those recorded: an arm that
    answers few questions may meet easy or hard ones. Nothing where there is no calibration, nor for children
    that are drawn at random: the recorded ranks say which of the likeliest tokens is accepted.
    """
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
        size = arm.max_num_seqs, params.dataset.num_prompts
        draws = calibration.arm_draws(tree, *size, DRAWS, params.report.seed)
        tail = (1 - params.report.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        value = calibration.arm_ms_per_token(tree, *size)
        found[arm.name] = Ratio(value, float(low), float(high), len(calibration.recording.answers))
    return found
