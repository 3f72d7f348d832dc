"""Test fixture: what is measured beside the arms, interleaved and by the peer. No number was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.common.files import write_json
from stages.common.params import Params
from stages.reporting.load import expected_arms

if TYPE_CHECKING:
    from results_factory import Scenario


def timing(time_per_token_ms: float, tokens: int) -> dict:
    return {
        "num_output_tokens": tokens,
        "wall_time_s": time_per_token_ms * tokens / 1e3,
        "time_per_token_ms": time_per_token_ms,
    }


def write_interleaved(
    folder: Path,
    scenario: Scenario,
    params: Params,
    batch: int,
    prompt_speed: np.ndarray,
    plain_step_ms: float,
) -> None:
    """Groups of `batch` prompts, every mode of params on each, with little noise."""
    modes = ["none"] + [
        f"{name.arm}-{name.setting}"
        for name in expected_arms(params)
        if name.setting and name.max_num_seqs == batch
    ]
    rng, rows = np.random.default_rng(scenario.seed), []
    step = plain_step_ms * scenario.none_slowdown
    for mode in modes:
        per_token = step / (1.0 if mode == "none" else scenario.interleaved_speedup)
        for repeat in range(scenario.repeats):
            noise = 1 + 0.01 * rng.standard_normal(scenario.prompts)
            times = per_token * prompt_speed * noise * scenario.tokens
            for prompt, e2e_ms in enumerate(times):
                group = prompt // batch
                slowest = times[group * batch : (group + 1) * batch].max()
                rows.append(
                    {
                        "prompt_index": prompt,
                        "repeat": repeat,
                        "mode": mode,
                        "group": group,
                        "num_output_tokens": scenario.tokens,
                        "e2e_ms": e2e_ms,
                        "group_wall_time_s": slowest / 1e3,
                    }
                )
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_parquet(folder / "requests.parquet")
    figures = {
        mode: timing(float(own["e2e_ms"].sum() / own["num_output_tokens"].sum() / batch), len(own))
        for mode, own in frame.groupby("mode")
    }
    head = {"asked": True, "temperature": scenario.temperatures[0], "max_num_seqs": batch}
    write_json(folder / "metrics.json", head | {"modes": figures})


def write_peer(folder: Path, scenario: Scenario, prompt_speed: np.ndarray) -> None:
    """Plain generation at 30 ms a token, assisted at 20 ms."""
    times = {"plain": 30.0, "assisted": 20.0}
    rows = [
        {
            "prompt_index": prompt,
            "repeat": repeat,
            "mode": mode,
            "num_output_tokens": scenario.tokens,
            "e2e_ms": per_token * prompt_speed[prompt] * scenario.tokens,
        }
        for mode, per_token in times.items()
        for repeat in range(scenario.repeats)
        for prompt in range(scenario.prompts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "requests.parquet")
    modes = {mode: timing(per_token, len(rows)) for mode, per_token in times.items()}
    head = {"asked": True, "same_output": 1.0, "transformers_version": "4.57.6"}
    write_json(folder / "metrics.json", head | modes)
