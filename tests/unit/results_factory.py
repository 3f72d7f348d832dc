"""Test fixture: synthetic results folders in the shape of the contract. No number here was measured.

    scenario = Scenario(prompts=4, diverge={"chain-k1-b1": Flip(position=2, gap=0.1)})
    params_file = write_results(tmp_path, scenario)      # tmp_path/results, tmp_path/params.yaml

Times come from a small cost model with seeded noise, so a speedup can be chosen and a report looks alive.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from side_results import timing, write_interleaved, write_peer

from stages.common.files import write_json
from stages.common.params import load_params
from stages.reporting.load import ArmName, expected_arms
from treespec.tree import TokenTree

ROOT = Path(__file__).resolve().parents[2]
PLAIN_STEP_MS = 20.0


@dataclass(frozen=True)
class Flip:
    """Prompt 0 of an arm leaves the baseline at `position`; `gap` is the baseline's top-2 gap there."""

    position: int
    gap: float
    to_runner_up: bool = True
    cut: bool = False  # the output ends there instead


@dataclass(frozen=True)
class Scenario:
    batches: tuple[int, ...] = (1, 4)
    ks: tuple[int, ...] = (1, 3)
    trees: dict[str, list[list[int]]] = field(default_factory=lambda: {"small": [[0], [0, 0], [1]]})
    prompts: int = 6
    repeats: int = 2
    tokens: int = 24
    acceptance: float = 0.8
    drafts: bool = True
    speedup_factor: float = 1.0  # multiplies every arm's cost-model speedup
    noise: float = 0.02
    drift: float = 0.02  # of the bandwidth probe, which decides nothing
    diverge: dict[str, Flip] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    temperatures: tuple[float, ...] = (0.0,)
    skewed: frozenset[str] = frozenset()  # arms whose sampler is broken
    interleaved_speedup: float | None = None  # of every mode; None: not measured
    none_slowdown: float = 1.0  # of the interleaved engine's undrafted mode
    peer: bool = False
    controls: tuple[float, ...] | None = (1.01, 0.99)  # times of the arms' controls / the baseline's, in turn
    again: float | None = 1.01  # time of the baseline's repetition / the baseline's
    draft_sampling: str = "greedy"
    dtype: str = "bfloat16"
    text: str = "The answer is 42."
    device_name: str = "Synthetic CPU"
    source: str = "path:data/local/gsm8k"
    target: str = "pypi:target==1.0"
    seed: int = 0


def write_results(folder: Path, scenario: Scenario) -> Path:
    """Write folder/results and folder/params.yaml; return the params file."""
    params_file = folder / "params.yaml"
    params_file.parent.mkdir(parents=True, exist_ok=True)
    params_file.write_text(yaml.safe_dump(_params(scenario)))
    params, results = load_params(params_file), folder / "results"
    shutil.rmtree(results / "baseline_again", ignore_errors=True)  # of a scenario before, in the same folder
    write_json(results / "environment.json", _environment(scenario))
    write_json(results / "models.json", _models(scenario))
    rng = np.random.default_rng(scenario.seed)
    prompt_speed = 1 + 0.1 * rng.standard_normal(scenario.prompts)
    controls = itertools.cycle(scenario.controls or [None])
    for name in expected_arms(params):
        arm_folder = results / name.arm / name.key
        if name.name in scenario.failed:
            write_json(arm_folder / "failed.json", {"error": scenario.failed[name.name]})
        else:
            control = None if name.arm == "baseline" else next(controls)
            _write_arm(arm_folder, scenario, name, prompt_speed, rng, control)
    for batch in scenario.batches if scenario.again is not None else ():
        folder_again = results / "baseline_again" / f"b{batch}"
        folder_again.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(_undrafted(scenario, batch, prompt_speed, scenario.again)).to_parquet(
            folder_again / "requests.parquet"
        )
    if scenario.interleaved_speedup is not None:
        for batch in scenario.batches:
            step = sum(_step_ms(scenario, ArmName("baseline", "", batch)).values())
            folder = results / f"interleaved/b{batch}"
            write_interleaved(folder, scenario, params, batch, prompt_speed, step)
    if scenario.peer:
        write_peer(results / "peer_transformers", scenario, prompt_speed)
    return params_file


def _params(scenario: Scenario) -> dict:
    raw = copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text()))
    raw["dataset"]["num_prompts"] = scenario.prompts
    raw["engine"] |= {"max_num_seqs": list(scenario.batches), "dtype": scenario.dtype}
    raw["sampling"] |= {"max_tokens": scenario.tokens, "temperature": list(scenario.temperatures)}
    raw["speculation"]["draft_sampling"] = scenario.draft_sampling
    raw["speculation"]["chain"]["num_speculative_tokens"] = list(scenario.ks)
    raw["speculation"]["tree"] = {"names": list(scenario.trees), "literals": scenario.trees}
    raw["measure"] |= {"repeats": scenario.repeats, "interleaved": scenario.interleaved_speedup is not None}
    raw["peers"] = {"transformers": scenario.peer}
    raw["report"] = {"confidence": 0.95, "bootstrap_resamples": 500, "seed": 0}
    return raw


def _environment(scenario: Scenario) -> dict:
    versions = {
        "python": "3.12.3",
        "vllm": "0.15.0",
        "torch": "2.10.0",
        "transformers": "5.0.0",
        "dvc": "3.67.0",
    }
    return {
        "device": "cpu",
        "device_name": scenario.device_name,
        "device_count": 1,
        "driver": None,
        "cpu_model": scenario.device_name,
        "cpu_count": 2,
        "memory_gib": 16.0,
        "versions": versions,
        "image_digest": None,
        "platform": "Linux-x86_64",
    }


def _probe(factor: float) -> dict:
    matmul = {"bfloat16": 0.9 * factor, "float32": 0.2 * factor}
    return {
        "memory_bandwidth_gb_per_s": 18.0 * factor,
        "matmul_tflop_per_s": matmul,
        "when": "2026-01-01T00:00:00Z",
    }


def _models(scenario: Scenario) -> dict:
    target = {
        "reference": scenario.target,
        "revision": "1.0",
        "weight_bytes": 270_000_000,
        "num_parameters": 135,
    }
    return {"target": target, "draft": target | {"reference": "prune:0,1", "weight_bytes": 80_000_000}}


def _write_arm(
    folder: Path,
    scenario: Scenario,
    name: ArmName,
    prompt_speed: np.ndarray,
    rng: np.random.Generator,
    control: float | None,
) -> None:
    speculation, step_ms = _speculation(scenario, name), _step_ms(scenario, name)
    length = (speculation or {}).get("mean_acceptance_length") or 1.0
    per_token = sum(step_ms.values()) / length
    if speculation:
        per_token /= scenario.speedup_factor
    noises = rng.standard_normal((len(scenario.temperatures), scenario.repeats, scenario.prompts))
    rows = [
        _request(
            scenario,
            name,
            prompt,
            repeat,
            per_token * prompt_speed[prompt] * (1 + scenario.noise * noise),
            degree,
        )
        for degree, by_repeat in zip(scenario.temperatures, noises, strict=True)
        for repeat, by_prompt in enumerate(by_repeat)
        for prompt, noise in enumerate(by_prompt)
    ]
    requests = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    written = requests
    if control is not None:
        undrafted = pd.DataFrame(_undrafted(scenario, name.max_num_seqs, prompt_speed, control))
        written = pd.concat([requests.assign(mode="drafted"), undrafted.assign(mode="none")])
    written.to_parquet(folder / "requests.parquet")
    write_json(folder / "metrics.json", _metrics(scenario, name, requests, speculation, step_ms))


def _undrafted(scenario: Scenario, batch: int, prompt_speed: np.ndarray, factor: float) -> list[dict]:
    """One undrafted pass at the first temperature, `factor` times as long as the baseline's."""
    name, degree = ArmName("baseline", "", batch), scenario.temperatures[0]
    step = sum(_step_ms(scenario, name).values()) * factor
    return [
        _request(scenario, name, prompt, 0, step * speed, degree) for prompt, speed in enumerate(prompt_speed)
    ]


def _speculation(scenario: Scenario, name: ArmName) -> dict | None:
    if name.arm == "baseline":
        return None
    is_tree = name.arm == "tree"
    tree = (
        TokenTree.from_paths(scenario.trees[name.setting])
        if is_tree
        else TokenTree.chain(int(name.setting[1:]))
    )
    drafts = 100 if scenario.drafts else 0
    reach = min(scenario.acceptance * (1.12 if is_tree else 1.0), 1.0)
    per_position = {
        str(level): round(reach**level, 4) if drafts else None for level in range(1, tree.depth + 1)
    }
    accepted = round(sum((rate or 0.0) * drafts for rate in per_position.values()))
    proposed = drafts * tree.num_nodes
    return {
        "num_speculative_tokens": tree.num_nodes,
        "tree": name.setting if is_tree else None,
        "tree_nodes": tree.num_nodes,
        "tree_depth": tree.depth,
        "num_drafts": drafts,
        "num_draft_tokens": proposed,
        "num_accepted_tokens": accepted,
        "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
        "draft_efficiency": accepted / proposed if proposed else None,
        "acceptance_rate_per_position": per_position,
        "off_chain_accepted_tokens": accepted // 10 if is_tree else 0,
    }


def _step_ms(scenario: Scenario, name: ArmName) -> dict[str, float]:
    batch_factor = 1 + 0.1 * (name.max_num_seqs - 1)
    if name.arm == "baseline":
        return {"target_forward": 17.0 * batch_factor, "other": 3.0}
    is_tree = name.arm == "tree"
    tree = (
        TokenTree.from_paths(scenario.trees[name.setting])
        if is_tree
        else TokenTree.chain(int(name.setting[1:]))
    )
    return {
        "target_forward": 17.0 * batch_factor + 0.35 * tree.num_nodes * name.max_num_seqs,
        "draft_forward": 3.2 * tree.depth * batch_factor,
        "verify": 0.5,
        "compact": 0.3 if is_tree else 0.0,
        "other": 3.6,
    }


def _ids(scenario: Scenario, name: ArmName, prompt: int, repeat: int, degree: float) -> list[int]:
    """Greedy: the prompt's own. Sampled: drawn anew by every arm from the prompt's distribution."""
    own = np.random.default_rng([scenario.seed, prompt])
    if degree == 0:
        return own.integers(3, 1000, scenario.tokens).tolist()
    shares = own.dirichlet(np.full(60, 0.3)) ** (3.0 if name.name in scenario.skewed else 1.0)
    seed = int(hashlib.sha256(f"{scenario.seed} {name.name} {prompt} {repeat}".encode()).hexdigest()[:12], 16)
    return np.random.default_rng(seed).choice(60, scenario.tokens, p=shares / shares.sum()).tolist()


def _request(
    scenario: Scenario, name: ArmName, prompt: int, repeat: int, per_token_ms: float, degree: float
) -> dict:
    ids = _ids(scenario, name, prompt, repeat, degree)
    text, flip = f"{scenario.text} {prompt}", scenario.diverge.get(name.name)
    if flip and prompt == 0 and degree == 0:
        new = ids[flip.position] + (1000 if flip.to_runner_up else 5000)
        ids = ids[: flip.position] + ([] if flip.cut else [new, *ids[flip.position + 1 :]])
        text += " but otherwise"
    e2e_ms = per_token_ms * len(ids)
    row = {
        "prompt_index": prompt,
        "repeat": repeat,
        "temperature": degree,
        "num_prompt_tokens": 80,
        "num_output_tokens": len(ids),
        "output_token_ids": ids,
        "text": text,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "finish_reason": "length",
        "ttft_ms": per_token_ms,
        "tpot_ms": per_token_ms if len(ids) > 1 else None,
        "e2e_ms": e2e_ms,
        "answer": "42",
        "expected": "42" if prompt % 3 else "7",
        "correct": bool(prompt % 3),
    }
    if name.arm == "baseline":
        gaps = [2.0] * len(ids)
        for flip in scenario.diverge.values():
            gaps[flip.position] = flip.gap if prompt == 0 else 2.0
        first = repeat == 0 and degree == 0
        row |= {
            "top2_gap": gaps if first else [],
            "runner_up_ids": [token + 1000 for token in ids] if first else [],
        }
    return row


def _metrics(
    scenario: Scenario,
    name: ArmName,
    requests: pd.DataFrame,
    speculation: dict | None,
    step_ms: dict[str, float],
) -> dict:
    degrees = scenario.temperatures
    figures = {
        degree: _figures(rows, speculation, step_ms, name.max_num_seqs)
        for degree, rows in requests.groupby("temperature")
    }
    return {
        "arm": name.arm,
        "key": name.key,
        "device": "cpu",
        "dtype": scenario.dtype,
        "dataset_source": scenario.source,
        "num_prompts": scenario.prompts,
        "repeats": scenario.repeats,
        "max_num_seqs": name.max_num_seqs,
        "temperature": degrees[0],
        **figures[degrees[0]],
        "at_temperature": {str(degree): figures[degree] for degree in degrees[1:]},
        "probe": {"before": _probe(1.0), "after": _probe(1 + scenario.drift)},
        "weight_bytes": 270_000_000,
        "models": {"target": scenario.target, "draft": "prune:0,1"},
        "environment": _environment(scenario),
        "finished_at": "2026-01-01T00:00:00+00:00",
        "vllm_version": "0.15.0",
        "prompt_format": "chat",
    }


def _figures(
    requests: pd.DataFrame, speculation: dict | None, step_ms: dict[str, float], max_num_seqs: int
) -> dict:
    """What depends on the passes of one temperature."""
    passes = [
        {
            "repeat": int(repeat),
            "wall_time_s": float(rows["e2e_ms"].sum() / 1e3 / max_num_seqs),
            "num_output_tokens": int(rows["num_output_tokens"].sum()),
        }
        for repeat, rows in requests.groupby("repeat")
    ]
    tokens, seconds = int(requests["num_output_tokens"].sum()), sum(one["wall_time_s"] for one in passes)

    def summary(column: str) -> dict:
        known = requests[column].dropna()
        names = {"mean": known.mean(), "p50": known.quantile(0.5), "p99": known.quantile(0.99)}
        return {key: float(value) if len(known) else None for key, value in names.items()}

    return {
        **timing(seconds * 1e3 / tokens, tokens),
        "throughput_tokens_per_s": tokens / seconds,
        "ttft_ms": summary("ttft_ms"),
        "tpot_ms": summary("tpot_ms"),
        "e2e_ms": summary("e2e_ms"),
        "gsm8k_accuracy": float(requests["correct"].mean()),
        "roofline_share": 0.7,
        "speculation": speculation,
        "step_ms": step_ms,
        "passes": passes,
        "plugin": {"acted": True} if speculation else None,
        "sampling": {"temperature": float(requests["temperature"].iloc[0])},
    }
