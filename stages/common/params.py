"""params.yaml as one frozen model: read once, every mistake named before any engine starts.

    params = load_params()              # params.yaml
    params.engine.max_num_seqs          # (1, 4)
    params.tree("mc_sim_8b_12")         # TokenTree

Unknown keys, duplicate keys, wrong types and impossible combinations raise UserError with the field's
dotted name, its value and what was expected. Library code never reads YAML or the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, model_validator

from stages.common.errors import UserError
from stages.common.param_types import (
    DatasetSource,
    Distinct,
    ModelReference,
    NonEmptyList,
    NumTokens,
    OneOrList,
    PositiveInt,
    Section,
    Sha256,
    Temperature,
    TreeName,
    TreePaths,
    expectation,
)
from stages.common.yaml_files import read_mapping
from stages.distillation.settings import Distill, FromList, Number
from treespec.tree import MAX_NODES, TokenTree

TREES_FOLDER = Path("trees")
PARAMS_FILE = Path("params.yaml")
AUTO = "auto"  # in place of a chain's length
GROWN_AUTO = "grown_auto"  # in place of a tree's name; so is grown_N
MAX_CHAIN = 64


class Dataset(Section):
    sources: Annotated[tuple[DatasetSource, ...], FromList, Distinct, NonEmptyList]
    num_prompts: Annotated[int, Field(ge=1, le=1319)]
    prompt_format: Literal["chat", "few_shot"]


class Models(Section):
    target: ModelReference
    draft: ModelReference
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    trust_remote_code: Annotated[tuple[str, ...], FromList] = ()

    @model_validator(mode="after")
    def _check(self) -> Models:
        kind = self.target.partition(":")[0]
        if kind in ("prune", "distilled"):
            raise UserError("models.target", self.target, f"a whole model, since {kind}: is for drafts")
        return self


class Engine(Section):
    device: Literal["cpu", "cuda"]
    dtype: Literal["bfloat16", "float16", "float32"]
    tensor_parallel_size: PositiveInt
    draft_tensor_parallel_size: PositiveInt
    pipeline_parallel_size: PositiveInt
    distributed_executor_backend: Literal["mp", "ray"]
    max_num_seqs: Annotated[tuple[PositiveInt, ...], FromList, Distinct, NonEmptyList]
    max_model_len: Annotated[int, Field(ge=16), NumTokens]
    max_num_batched_tokens: Annotated[int, Field(ge=1), NumTokens] | None
    gpu_memory_utilization: Annotated[Number, Field(gt=0, le=1)]
    kv_cache_gib: Annotated[Number, Field(gt=0, le=4096)]
    enforce_eager: bool
    enable_prefix_caching: bool

    @model_validator(mode="after")
    def _check(self) -> Engine:
        if self.draft_tensor_parallel_size not in (1, self.tensor_parallel_size):
            raise UserError(
                "engine.draft_tensor_parallel_size",
                self.draft_tensor_parallel_size,
                f"1 or engine.tensor_parallel_size ({self.tensor_parallel_size})",
            )
        if self.pipeline_parallel_size > 1 and self.device == "cpu":
            raise UserError("engine.pipeline_parallel_size", self.pipeline_parallel_size, "1 on cpu")
        return self


class Sampling(Section):
    max_tokens: PositiveInt
    temperature: Annotated[tuple[Temperature, ...], OneOrList, Distinct, NonEmptyList]  # the first: main
    top_p: Annotated[Number, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0, lt=2**31)]
    min_p: Annotated[Number, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # NumPy, which vLLM seeds too, takes no more


def _chain_length(value: Any) -> int | str:
    if value == AUTO:
        return value
    if type(value) is not int:
        raise ValueError(f"expected a whole number or {AUTO}")
    if not 1 <= value <= MAX_CHAIN:
        raise ValueError("expected at least 1" if value < 1 else f"expected at most {MAX_CHAIN}")
    return value


class Chain(Section):
    num_speculative_tokens: Annotated[
        tuple[Annotated[int | str, PlainValidator(_chain_length)], ...], FromList, Distinct, NonEmptyList
    ]


def grown_nodes(name: str) -> int | None:
    """N of a tree called grown_N; None for any other name."""
    match = re.fullmatch(r"grown_(\d+)", name)
    return int(match[1]) if match else None


def is_grown(name: str) -> bool:
    """Whether a tree's name stands for one that the calibration grows."""
    return name == GROWN_AUTO or grown_nodes(name) is not None


class Tree(Section):
    names: Annotated[tuple[TreeName, ...], FromList, Distinct]
    literals: dict[TreeName, TreePaths] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Tree:
        for name in self.names:
            nodes = grown_nodes(name)
            wanted = name.startswith("grown_") and not name.endswith(".json")
            if wanted and name != GROWN_AUTO and not (nodes and 1 <= nodes <= MAX_NODES):
                expected = f"{GROWN_AUTO}, or grown_N with N from 1 to {MAX_NODES}"
                raise UserError("speculation.tree.names", name, expected)
        for name in self.literals:
            if name.startswith("grown_"):
                expected = "another name: grown_... is grown from the calibration"
                raise UserError("speculation.tree.literals", name, expected)
        return self


class Speculation(Section):
    implementation: Literal["treespec", "stock"]
    draft_sampling: Literal["greedy", "probabilistic"]
    chain: Chain
    tree: Tree


class Calibration(Section):
    """What the stage calibrate measures, and how far `auto` and `grown_auto` may go."""

    num_prompts: Annotated[int, Field(ge=1, le=1319)] = 64  # questions behind those that the arms answer
    rounds: PositiveInt = 3  # times every size of a step is timed
    max_step_tokens: Annotated[int, Field(ge=2, le=8192)] = 512  # the largest step that is timed
    max_nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 64
    max_depth: Annotated[int, Field(ge=1, le=64)] = 12


class Measure(Section):
    warmup_prompts: Annotated[int, Field(ge=0)]
    repeats: PositiveInt
    interleaved: bool = False  # once more in one engine, the mode drawn anew for every group of prompts


class Peers(Section):
    transformers: bool = False


class Report(Section):
    confidence: Annotated[Number, Field(gt=0.5, lt=1)]
    bootstrap_resamples: Annotated[int, Field(ge=100, le=1_000_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class Params(Section):
    """The whole of params.yaml."""

    dataset: Dataset
    models: Models
    engine: Engine
    sampling: Sampling
    speculation: Speculation
    calibration: Calibration = Calibration()
    measure: Measure
    peers: Peers = Peers()
    report: Report
    distill: Distill | None = None  # only stages.distill_draft reads it

    @model_validator(mode="after")
    def _check(self) -> Params:
        if self.speculation.implementation == "stock" and self.engine.device == "cpu":
            raise UserError(
                "speculation.implementation",
                "stock",
                "'treespec' on cpu, where stock vLLM 0.15.0 refuses speculation",
            )
        engine = self.engine
        if (
            self.speculation.implementation == "stock"
            and engine.draft_tensor_parallel_size != engine.tensor_parallel_size
        ):
            raise UserError(
                "engine.draft_tensor_parallel_size",
                engine.draft_tensor_parallel_size,
                f"engine.tensor_parallel_size ({engine.tensor_parallel_size}) with stock vLLM 0.15.0",
            )
        if self.speculation.implementation == "stock" and self.speculation.draft_sampling != "greedy":
            raise UserError(
                "speculation.draft_sampling",
                self.speculation.draft_sampling,
                "'greedy' with stock vLLM 0.15.0, which drafts by argmax at every temperature",
            )
        if self.sampling.min_p > 0:
            raise UserError(
                "sampling.min_p",
                self.sampling.min_p,
                "0: vLLM 0.15.0 refuses min_p beside speculation",
            )
        if self.sampling.max_tokens >= self.engine.max_model_len:
            raise UserError(
                "sampling.max_tokens",
                self.sampling.max_tokens,
                f"less than engine.max_model_len ({self.engine.max_model_len})",
            )
        return self

    def tree(self, name: str, folder: Path = TREES_FOLDER) -> TokenTree:
        """The tree called `name`: a literal of params, a file path, or trees/NAME.json.

        A grown one is stages.calibration.choice's.
        """
        field = f"speculation.tree.names: {name}"
        try:
            if name in self.speculation.tree.literals:
                return TokenTree.from_paths(self.speculation.tree.literals[name])
            path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
            if not path.is_file():
                raise UserError(
                    "speculation.tree.names", name, f"a name under literals or an existing file {path}"
                )
            return TokenTree.from_file(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(field, str(error), f"a token tree of 1 to {MAX_NODES} nodes") from error


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a params file. Raises UserError with one line for the first mistake."""
    return parse_params(read_mapping(path))


def parse_params(raw: dict[str, Any]) -> Params:
    """Check a mapping as params, named and literal trees included. Raises UserError."""
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        value = "(absent)" if first["type"] == "missing" else first["input"]
        raise UserError(field, value, expectation(first["type"], first["msg"])) from error
    for name in {**dict.fromkeys(params.speculation.tree.names), **params.speculation.tree.literals}:
        if not is_grown(name):
            params.tree(name)
    return params


def override(params: Params, values: dict[str, Any]) -> Params:
    """`params` with some fields replaced by dotted name, checked anew; None leaves a field as it is.

    override(params, {"models.target": "path:there", "measure.repeats": None})
    """
    raw = params.model_dump()
    for name, value in values.items():
        *blocks, key = name.split(".")
        section = raw
        for block in blocks:
            section = section[block]
        if value is not None:
            section[key] = value
    return parse_params(raw)
