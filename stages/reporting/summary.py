"""The numbers for machines: results/summary.json. No NaN: what does not exist is null.

    summarise(analysis, verdict)["arms"]["chain-k3-b1"]["speedup_low"]

arms.<arm>-<key> holds speedup, speedup_low, speedup_high ... of the first temperature,
at_temperature.<t>.arms those of the others; interleaved.b<batch>, peer, best, recommendation and settings
stand beside them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult
from stages.reporting.predicted import median_error
from stages.reporting.statistics import Ratio
from stages.reporting.verdict import Verdict

DIGITS = 6
NO_BEST = {"arm": None, "key": None, "speedup": None, "speedup_low": None, "speedup_high": None}


def summarise(analysis: Analysis, verdict: Verdict) -> dict[str, Any]:
    """The content of results/summary.json."""
    best = verdict.best
    results = analysis.results.values()
    return {
        "recommendation": verdict.sentence,
        "decision": verdict.kind,
        "settings": _settings(analysis),
        "best": NO_BEST if best is None else {"arm": best.name.arm, "key": best.name.key, **_best(best)},
        "pays_up_to_max_num_seqs": max(verdict.pays_at, default=None),
        "all_lossless": not analysis.changed,
        "num_failed": len(analysis.run.failed),
        "median_prediction_error": rounded(median_error(result.predicted for result in results)),
        "arms": _arms(analysis) | {name: {"failed": error} for name, error in analysis.run.failed.items()},
        "at_temperature": {f"{one.temperature}": {"arms": _arms(one)} for one in analysis.others},
        "machine": {name: rounded(value) for name, value in asdict(analysis.machine).items()},
        "drift": _drift(analysis),
        "interleaved": _interleaved(analysis),
        "peer": _peer(analysis),
    }


def _settings(analysis: Analysis) -> dict[str, Any]:
    """What tells one experiment from another in a comparison."""
    params = analysis.run.params
    return {
        "temperature": analysis.temperature,
        "draft_sampling": params.speculation.draft_sampling,
        "implementation": params.speculation.implementation,
        "target": params.models.target,
        "draft": params.models.draft,
        "device": analysis.run.environment.device_name,
        "dtype": params.engine.dtype,
        "num_prompts": params.dataset.num_prompts,
        "max_tokens": params.sampling.max_tokens,
    }


def _arms(analysis: Analysis) -> dict[str, Any]:
    return {name: _arm(result) for name, result in analysis.results.items()}


def _drift(analysis: Analysis) -> dict[str, Any]:
    """Between engines that did the same work; `factor` is what two may lie apart by drift alone."""
    drift = analysis.drift
    if drift is None:
        return {}
    return {
        "standard_deviation": rounded(drift.sd),
        "num_engines": len(drift.engines) + len({one.max_num_seqs for one in drift.engines}),
        "degrees_of_freedom": drift.freedom,
        "factor": rounded(drift.factor),
    }


def _interleaved(analysis: Analysis) -> dict[str, Any]:
    return {
        f"b{batch}": {
            "none_time_per_token_ms": rounded(side.none_ms),
            **_bounds("none_over_baseline", side.none_ratio),
            "arms": {
                name: {
                    **_bounds("speedup", mode.speedup),
                    "time_per_token_ms": rounded(mode.time_per_token_ms),
                }
                for name, mode in side.modes.items()
            },
        }
        for batch, side in analysis.interleaved.items()
    }


def _peer(analysis: Analysis) -> dict[str, Any]:
    peer = analysis.peer
    if peer is None or peer.reason:
        return {}
    modes = {
        mode: {
            "time_per_token_ms": rounded(found.time_per_token_ms),
            **_bounds("speedup_over_own_plain", found.own),
            **_bounds("our_best_over_it", found.ours),
        }
        for mode, found in peer.modes.items()
    }
    return {"transformers_version": peer.version, "same_output": rounded(peer.same_output), **modes}


def _bounds(key: str, ratio: Ratio | None) -> dict[str, float | None]:
    value, low, high = (ratio.value, ratio.low, ratio.high) if ratio else (None, None, None)
    return {key: rounded(value), f"{key}_low": rounded(low), f"{key}_high": rounded(high)}


def _best(best: ArmResult) -> dict[str, Any]:
    return {**_bounds("speedup", best.evidence), "interleaved": best.by_interleaving}


def _speedup(result: ArmResult) -> dict[str, float | None]:
    if result.is_baseline:
        return {"speedup": 1.0, "speedup_low": None, "speedup_high": None}
    return _bounds("speedup", result.speedup)


def _arm(result: ArmResult) -> dict[str, Any]:
    speculation, found, predicted = result.arm.metrics.speculation, result.losslessness, result.predicted
    entry = {
        **_speedup(result),
        "time_per_token_ms": rounded(result.arm.metrics.time_per_token_ms),
        "latency_speedup": rounded(result.latency.value if result.latency else None),
        "throughput_speedup": rounded(result.throughput),
        "mean_acceptance_length": rounded(speculation.mean_acceptance_length if speculation else None),
        "draft_efficiency": rounded(speculation.draft_efficiency if speculation else None),
        "lossless": result.lossless,
        "verdict": found.verdict if found else None,
        "num_outputs": found.num_compared if found else None,
        "num_divergences": len(found.divergences) if found else None,
        "num_unexplained": found.num_unexplained if found else None,
        "p_value": rounded(found.p_value if found else None),
        "gsm8k_accuracy": rounded(result.accuracy.value),
        "predicted_speedup": rounded(predicted.speedup if predicted else None),
        "predicted_time_per_token_ms": rounded(predicted.time_per_token_ms if predicted else None),
        "prediction_error": rounded(predicted.error if predicted else None),
        "prediction_outside": predicted.outside if predicted else None,
        "explained_speedup": rounded(result.explained),
        "overhead_share": rounded(result.step.overhead_share if result.step else None),
        "floor_ms": rounded(result.floor.ms),
        "floor_share": rounded(result.floor_share),
        "roofline_share": rounded(result.roofline_share),
        **_bounds("speedup_over_prompts", result.over_prompts),
        **_bounds("speedup_over_own_control", result.over_control),
        **_bounds("undrafted_over_baseline", result.undrafted.ratio if result.undrafted else None),
    }
    if result.is_baseline:  # these compare with a baseline or count drafts
        speculative_only = ("latency_", "throughput_", "mean_acceptance", "draft_", "predicted_speedup")
        speculative_only += ("explained_", "speedup_over_")
        entry = {key: value for key, value in entry.items() if not key.startswith(speculative_only)}
    return entry


def rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)
