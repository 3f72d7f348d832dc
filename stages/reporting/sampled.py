"""Sampled output differs from run to run: do two arms' outputs follow one distribution?

An exact test without assumptions on tokens. If both arms sample the same distribution, the outputs of one
prompt are exchangeable between them, so labels are permuted within prompts and prompts are never mixed. The
statistic is the energy distance (Szekely and Rizzo 2013) between token histograms, summed over prompts:

    T = sum over prompts of  2 mean d(x, y) - mean d(x, x') - mean d(y, y')
    d = total variation distance of two outputs' token shares: half the sum of |share - share'|
    p = (1 + number of permutations with T* >= T) / (1 + number of permutations)

It sees that outputs are made of other tokens (a skewed, sharpened or flattened sampler). It cannot see the
order of tokens, rare tokens or a small bias; those are proven exactly in tests/unit/test_verify_exact.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist, squareform

from stages.reporting.statistics import MAX_RESAMPLED_VALUES

LEAST_PERMUTATIONS = 9_999


def distribution_p_value(
    baseline: pd.DataFrame, arm: pd.DataFrame, error_rate: float, seed: int
) -> float | None:
    """The p-value of "one distribution" for two arms' request rows; deterministic for one seed.

    None where there are too few outputs a prompt to reach `error_rate`, however different they are: with one
    a prompt nothing can be permuted.
    """
    strata = list(_strata(baseline, arm))
    arrangements = sum(_log_arrangements(weights) for _, weights in strata)
    if arrangements < -math.log(error_rate):
        return None
    rng = np.random.default_rng(seed)
    count = max(LEAST_PERMUTATIONS, math.ceil(20 / error_rate))
    observed, permuted = 0.0, np.zeros(count)
    for distances, weights in strata:
        observed -= weights @ distances @ weights
        permuted -= _permuted(distances, weights, count, rng)
    return float((1 + np.sum(permuted >= observed - 1e-12)) / (1 + count))


def _strata(baseline: pd.DataFrame, arm: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each prompt of both: distances [n + m, n + m] of its outputs, weights 1/n and -1/m [n + m]."""
    theirs = dict(iter(baseline.groupby("prompt_index")["output_token_ids"]))
    for prompt, ours in arm.groupby("prompt_index")["output_token_ids"]:
        if prompt in theirs:
            outputs = [np.asarray(ids) for ids in (*theirs[prompt], *ours)]
            n, m = len(theirs[prompt]), len(ours)
            yield _distances(outputs), np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])


def _distances(outputs: list[np.ndarray]) -> np.ndarray:
    tokens = np.unique(np.concatenate(outputs))
    counts = np.array([np.bincount(np.searchsorted(tokens, ids), minlength=len(tokens)) for ids in outputs])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return squareform(pdist(shares, "cityblock")) / 2


def _log_arrangements(weights: np.ndarray) -> float:
    """Log of how many values the statistic can take: exchanging both arms whole changes nothing."""
    total, first = len(weights), int(np.sum(weights > 0))
    return math.log(math.comb(total, first)) - (math.log(2) if 2 * first == total else 0.0)


def _permuted(distances: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """weights @ distances @ weights for `count` permutations of the weights, in pieces that fit in memory."""
    size, values = max(1, MAX_RESAMPLED_VALUES // len(weights)), []
    for start in range(0, count, size):
        rows = rng.permuted(np.tile(weights, (min(size, count - start), 1)), axis=1)
        values.append(np.einsum("pi,pi->p", rows @ distances, rows))
    return np.concatenate(values)
