"""Read a results folder whole, or say what is missing.

    run = load_run(params, Path("results"))
    run.arms["chain-k3-b1"].metrics.time_per_token_ms
    run.failed                                   # {"tree-wide-b1": "out of memory"}

The arms are those that params lists: every max_num_seqs, alone (baseline), with each chain and with each
tree. An arm that left failed.json counts as failed; one that is missing or partial raises UserError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from stages.common.errors import UserError
from stages.common.files import read_json
from stages.common.params import Params
from stages.reporting.schema import Environment, Metrics, ModelFacts, Part, Probe

REQUEST_COLUMNS = (
    "prompt_index",
    "repeat",
    "num_output_tokens",
    "output_token_ids",
    "text",
    "e2e_ms",
    "correct",
)
T = TypeVar("T", bound=Part)


@dataclass(frozen=True)
class ArmName:
    """`arm` is baseline, chain or tree; `setting` is '', 'k3' or the tree's name."""

    arm: str
    setting: str
    max_num_seqs: int

    @property
    def key(self) -> str:
        return f"{self.setting}-b{self.max_num_seqs}" if self.setting else f"b{self.max_num_seqs}"

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.key}"

    @property
    def label(self) -> str:
        """For people, without the batch: 'baseline', 'chain k=3', 'tree mc_sim_8b_12'."""
        setting = self.setting.replace("k", "k=", 1) if self.arm == "chain" else self.setting
        return f"{self.arm} {setting}".strip()


@dataclass(frozen=True)
class Arm:
    name: ArmName
    metrics: Metrics
    requests: pd.DataFrame


@dataclass(frozen=True)
class Run:
    params: Params
    arms: dict[str, Arm]
    failed: dict[str, str]
    environment: Environment
    models: dict[str, ModelFacts]
    probe: Probe | None

    def baseline_of(self, arm: Arm) -> Arm | None:
        return self.arms.get(ArmName("baseline", "", arm.name.max_num_seqs).name)


def expected_arms(params: Params) -> Iterator[ArmName]:
    """Every arm that params lists, the baselines first."""
    chains = [("chain", f"k{k}") for k in params.speculation.chain.num_speculative_tokens]
    trees = [("tree", Path(name).stem) for name in params.speculation.tree.names]
    for arm, setting in [("baseline", ""), *chains, *trees]:
        for batch in params.engine.max_num_seqs:
            yield ArmName(arm, setting, batch)


def load_run(params: Params, results: Path) -> Run:
    """Everything the report needs from `results`. Raises UserError naming the first bad file."""
    environment = _parse(Environment, results / "environment.json", _read(results / "environment.json"))
    raw_models = _read(results / "models.json")
    models = {
        role: _parse(ModelFacts, results / "models.json", raw_models.get(role))
        for role in ("target", "draft")
    }
    probe_file = results / "probe.json"
    probe = _parse(Probe, probe_file, _read(probe_file)) if probe_file.is_file() else None
    arms: dict[str, Arm] = {}
    failed: dict[str, str] = {}
    for name in expected_arms(params):
        folder = results / name.arm / name.key
        if (folder / "failed.json").is_file():
            failed[name.name] = str(_read(folder / "failed.json").get("error") or "no reason given")
        else:
            arms[name.name] = _load_arm(name, folder)
    run = Run(params, arms, failed, environment, models, probe)
    for arm in arms.values():
        _check_comparable(run, arm, results)
    return run


def _load_arm(name: ArmName, folder: Path) -> Arm:
    metrics = _parse(Metrics, folder / "metrics.json", _read(folder / "metrics.json"))
    if (metrics.arm, metrics.key) != (name.arm, name.key):
        raise UserError(
            str(folder / "metrics.json"), f"{metrics.arm}/{metrics.key}", f"{name.arm}/{name.key}"
        )
    path = folder / "requests.parquet"
    if not path.is_file():
        raise UserError(f"arm {name.name}", str(path), "an existing file; run `dvc repro`")
    try:
        requests = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid or KeyError on a cut file
        raise UserError(f"arm {name.name}", str(path), f"a readable parquet file ({error})") from error
    absent = [column for column in REQUEST_COLUMNS if column not in requests]
    if absent:
        raise UserError(str(path), absent, "these columns to be present")
    pairs = requests[["prompt_index", "repeat"]].drop_duplicates()
    rows = metrics.num_prompts * metrics.repeats
    if len(requests) != rows or len(pairs) != rows:
        raise UserError(
            f"arm {name.name}",
            f"{len(pairs)} requests",
            f"{rows} (num_prompts x repeats): a partial result; run `dvc repro`",
        )
    return Arm(name, metrics, requests.sort_values(["prompt_index", "repeat"], ignore_index=True))


def _check_comparable(run: Run, arm: Arm, results: Path) -> None:
    """A ratio of two arms means something only on the same prompts, device and dtype."""
    baseline = run.baseline_of(arm)
    if baseline is None:
        return
    ours = (set(arm.requests["prompt_index"]), arm.metrics.device, arm.metrics.dtype)
    theirs = (set(baseline.requests["prompt_index"]), baseline.metrics.device, baseline.metrics.dtype)
    if ours != theirs:
        raise UserError(
            str(results / arm.name.arm / arm.name.key),
            f"{len(ours[0])} prompts, {ours[1]}, {ours[2]}",
            f"the baseline's prompts, device and dtype ({len(theirs[0])}, {theirs[1]}, {theirs[2]})",
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError("results", str(path), "an existing file; run `dvc repro`")
    try:
        value = read_json(path)
    except ValueError as error:
        raise UserError("results", str(path), f"valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError("results", str(path), "a JSON object")
    return value


def _parse(kind: type[T], path: Path, value: Any) -> T:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {field}", first.get("input"), first["msg"]) from error
