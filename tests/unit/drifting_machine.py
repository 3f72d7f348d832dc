"""Test fixture: whole runs on simulated machines that drift, with a known true speedup. Nothing was measured.

    run = simulate("walk", np.random.default_rng(0))
    run.arms["chain-k1-b1"].requests

A machine is the logarithm of its slowness, pass by pass. Sessions follow each other as `dvc repro` runs them:
the baselines, every arm (REPEATS passes and its undrafted control), the baselines once more. An engine is by
3% faster or slower than another of its kind, a pass of one prompt by 2%; prompts differ by 10%, and their
speedups too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from stages.reporting.load import Arm, ArmName, Run

REPEATS, PROMPTS = 2, 8
SPEEDUP = 1.2
# Of all prompts: the ratio of mean times, whose speedups scatter by 10% about SPEEDUP.
TRUTH = SPEEDUP / math.exp(0.1**2 / 2)


def _jump(num_passes: int, rng: np.random.Generator) -> np.ndarray:
    return np.where(np.arange(num_passes) < rng.integers(1, num_passes), 0.0, rng.choice([-0.2, 0.2]))


def _swings(num_passes: int, rng: np.random.Generator) -> np.ndarray:
    found = [rng.normal(0, 0.08)]
    for _ in range(num_passes - 1):
        found.append(0.7 * found[-1] + math.sqrt(1 - 0.7**2) * rng.normal(0, 0.08))
    return np.array(found)


MACHINES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "quiet": lambda num_passes, rng: np.zeros(num_passes),
    "walk": lambda num_passes, rng: np.cumsum(rng.normal(0, 0.04, num_passes)),
    "trend": lambda num_passes, rng: np.linspace(0, rng.choice([-0.25, 0.25]), num_passes),
    "jump": _jump,
    "swings": _swings,
    "bursts": lambda num_passes, rng: np.where(rng.random(num_passes) < 0.2, 0.3, 0.0),
}


def simulate(
    machine: str, rng: np.random.Generator, num_arms: int = 4, batches: tuple[int, ...] = (1, 4)
) -> Run:
    """One run; every drafted arm is SPEEDUP times as fast as its baseline, prompt by prompt with scatter."""
    names = [ArmName("baseline", "", batch) for batch in batches]
    names += [ArmName("chain", f"k{k}", batch) for k, batch in product(range(1, num_arms + 1), batches)]
    sessions = names + names[: len(batches)]
    width = REPEATS + 1
    slowness = MACHINES[machine](width * len(sessions), rng)
    work = {batch: 10 * np.exp(rng.normal(0, 0.1, PROMPTS)) for batch in batches}
    arms, again = {}, {}
    for place, name in enumerate(sessions):
        engine, plain = rng.normal(0, 0.03), work[name.max_num_seqs]

        def passes(
            times: np.ndarray, first: int, count: int, place: int = place, engine: float = engine
        ) -> pd.DataFrame:
            logs = [
                slowness[place * width + first + one] + engine + rng.normal(0, 0.02, PROMPTS)
                for one in range(count)
            ]
            return _requests([times * np.exp(log) for log in logs])

        if place >= len(names):
            again[name.max_num_seqs] = passes(plain, 0, 1)
        elif name.arm == "baseline":
            arms[name.name] = Arm(name, None, passes(plain, 0, REPEATS))
        else:
            times = plain / SPEEDUP * np.exp(rng.normal(0, 0.1, PROMPTS))
            arms[name.name] = Arm(name, None, passes(times, 0, REPEATS), passes(plain, REPEATS, 1))
    return Run(None, 0.0, arms, {}, None, {}, again)


def _requests(times_ms: list[np.ndarray]) -> pd.DataFrame:
    tokens = 10
    return pd.DataFrame(
        {
            "prompt_index": np.tile(np.arange(PROMPTS), len(times_ms)),
            "repeat": np.repeat(np.arange(len(times_ms)), PROMPTS),
            "num_output_tokens": tokens,
            "e2e_ms": np.concatenate(times_ms) * tokens,
        }
    )
