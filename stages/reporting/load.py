"""Read a results folder whole, or say what is missing.

    run = load_run(params, Path("results"))
    run.arms["chain-k3-b1"].metrics.time_per_token_ms
    run.failed                                   # {"tree-wide-b1": "out of memory"}
    run.others[0].temperature                    # 1.0

The arms are those that params lists: every max_num_seqs, alone (baseline), with each chain and with each
tree. An arm that left failed.json counts as failed; one that is missing or partial raises UserError.
`run` is of the first temperature; `run.others` are the same arms at the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from stages.common.errors import UserError
from stages.common.files import read_json
from stages.common.params import Params
from stages.common.passes import NO_DRAFT
from stages.reporting.schema import Environment, Metrics, ModelFacts, Part

REQUEST_COLUMNS = (
    "prompt_index",
    "repeat",
    "temperature",
    "num_output_tokens",
    "output_token_ids",
    "text",
    "e2e_ms",
    "correct",
)
AGAIN = "baseline_again"
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
    control: pd.DataFrame | None = None  # the undrafted pass at its end, in the same engine

    def at(self, temperature: float) -> Arm:
        """The same arm, its figures and requests of one temperature only."""
        rows = self.requests[self.requests["temperature"] == temperature].reset_index(drop=True)
        if temperature == self.metrics.temperature:
            return replace(self, requests=rows)
        figures = self.metrics.at_temperature[temperature]
        own = {name: getattr(figures, name) for name in type(figures).model_fields}
        metrics = self.metrics.model_copy(update={**own, "temperature": temperature})
        return replace(self, metrics=metrics, requests=rows, control=None)


@dataclass(frozen=True)
class Run:
    """Every arm at one temperature."""

    params: Params
    temperature: float
    arms: dict[str, Arm]
    failed: dict[str, str]
    environment: Environment
    models: dict[str, ModelFacts]
    again: dict[int, pd.DataFrame]  # the baseline once more when all arms were done, by max_num_seqs
    others: tuple[Run, ...] = ()

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
    environment = parse(Environment, results / "environment.json", read(results / "environment.json"))
    raw_models = read(results / "models.json")
    models = {
        role: parse(ModelFacts, results / "models.json", raw_models.get(role)) for role in ("target", "draft")
    }
    arms: dict[str, Arm] = {}
    failed: dict[str, str] = {}
    for name in expected_arms(params):
        folder = results / name.arm / name.key
        if error := failure_of(folder):
            failed[name.name] = error
        else:
            arms[name.name] = _load_arm(name, folder, params.sampling.temperature)
    for folder in _side_folders(params, results):
        if error := failure_of(folder):
            failed["-".join(folder.relative_to(results).parts)] = error
    again = dict(_load_again(params, results))
    first, *others = (
        Run(
            params,
            degree,
            {name: arm.at(degree) for name, arm in arms.items()},
            failed,
            environment,
            models,
            again,
        )
        for degree in params.sampling.temperature
    )
    for run in (first, *others):
        for arm in run.arms.values():
            _check_comparable(run, arm, results)
    return replace(first, others=tuple(others))


def failure_of(folder: Path) -> str | None:
    """Why what belongs into `folder` failed, or None. Where both exist, metrics.json is the later one."""
    path = folder / "failed.json"
    if not path.is_file() or (folder / "metrics.json").is_file():
        return None
    return str(read(path).get("error") or "no reason given")


def _side_folders(params: Params, results: Path) -> Iterator[Path]:
    """Where the measurements beside the arms are, as far as params asks for them."""
    yield from (results / AGAIN / f"b{batch}" for batch in params.engine.max_num_seqs)
    if params.measure.interleaved:
        yield from (results / "interleaved" / f"b{batch}" for batch in params.engine.max_num_seqs)
    if params.peers.transformers:
        yield results / "peer_transformers"


def _load_again(params: Params, results: Path) -> Iterator[tuple[int, pd.DataFrame]]:
    """Where it was measured; results of single stages, run by hand, have none."""
    for batch in params.engine.max_num_seqs:
        folder = results / AGAIN / f"b{batch}"
        if folder.is_dir() and not failure_of(folder):
            rows = read_requests(f"{AGAIN} b{batch}", folder / "requests.parquet", REQUEST_COLUMNS)
            _check_whole(f"{AGAIN} b{batch}", rows, params.dataset.num_prompts)
            yield batch, rows


def _load_arm(name: ArmName, folder: Path, degrees: tuple[float, ...]) -> Arm:
    path = folder / "metrics.json"
    metrics = parse(Metrics, path, read(path))
    if (metrics.arm, metrics.key) != (name.arm, name.key):
        raise UserError(str(path), f"{metrics.arm}/{metrics.key}", f"{name.arm}/{name.key}")
    measured = {metrics.temperature, *metrics.at_temperature}
    if metrics.temperature != degrees[0] or not measured >= set(degrees):
        raise UserError(str(path), f"temperatures {sorted(measured)}", f"{list(degrees)}; run `dvc repro`")
    requests = read_requests(f"arm {name.name}", folder / "requests.parquet", REQUEST_COLUMNS)
    requests = requests[requests["temperature"].isin(degrees)].sort_values(["prompt_index", "repeat"])
    requests = requests.reset_index(drop=True)
    control = None
    if "mode" in requests:
        drafted = requests["mode"] != NO_DRAFT
        requests, control = requests[drafted], requests[~drafted] if not drafted.all() else None
    rows = metrics.num_prompts * metrics.repeats * len(degrees)
    _check_whole(f"arm {name.name}", requests, rows)
    if control is not None:
        _check_whole(f"arm {name.name}, control", control, metrics.num_prompts)
    return Arm(name, metrics, requests.reset_index(drop=True), control)


def _check_whole(field: str, requests: pd.DataFrame, rows: int) -> None:
    pairs = requests[["temperature", "prompt_index", "repeat"]].drop_duplicates()
    if len(requests) != rows or len(pairs) != rows:
        raise UserError(
            field,
            f"{len(pairs)} requests",
            f"{rows} (num_prompts x repeats x temperatures): a partial result; run `dvc repro`",
        )


def read_requests(field: str, path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The rows of a requests.parquet. Raises UserError where it is absent, unreadable or lacks `columns`."""
    if not path.is_file():
        raise UserError(field, str(path), "an existing file; run `dvc repro`")
    try:
        requests = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid or KeyError on a cut file
        raise UserError(field, str(path), f"a readable parquet file ({error})") from error
    absent = [column for column in columns if column not in requests]
    if absent:
        raise UserError(str(path), absent, "these columns to be present")
    return requests


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


def read(path: Path) -> dict[str, Any]:
    """A JSON object of the results. Raises UserError."""
    if not path.is_file():
        raise UserError("results", str(path), "an existing file; run `dvc repro`")
    try:
        value = read_json(path)
    except ValueError as error:
        raise UserError("results", str(path), f"valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError("results", str(path), "a JSON object")
    return value


def parse(kind: type[T], path: Path, value: Any) -> T:
    """`value` of `path` as `kind`. Raises UserError naming the first bad field."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {field}", first.get("input"), first["msg"]) from error
