"""One measured arm: load, warm up, run the prompts `repeats` times, write what happened.

    results/<arm>/<key>/metrics.json      the contract of the numbers (README)
    results/<arm>/<key>/requests.parquet  one row a request and repeat, token ids included

At most `max_num_seqs` requests run at once and the next starts when one ends. Loading, warm-up and the
baseline's explaining pass are outside the clock and the counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.common import gsm8k, metrics
from stages.common.counters import Counters
from stages.common.engine import EnginePlan
from stages.common.errors import UserError
from stages.common.files import atomic_folder, write_json
from stages.common.params import Params
from stages.common.passes import Pass, Runner, write_requests
from stages.common.probe import measure_probe
from treespec.tree import TokenTree
from treespec.vllm_plugin import VLLM_VERSION


@dataclass(frozen=True)
class Arm:
    """What is run and where its figures go."""

    name: str  # baseline | chain | tree
    key: str  # b1 | k3-b1 | NAME-b1
    max_num_seqs: int
    tree: TokenTree | None = None
    tree_name: str | None = None

    @classmethod
    def baseline(cls, max_num_seqs: int) -> Arm:
        return cls("baseline", f"b{max_num_seqs}", max_num_seqs)

    @classmethod
    def chain(cls, num_speculative_tokens: int, max_num_seqs: int) -> Arm:
        key = f"k{num_speculative_tokens}-b{max_num_seqs}"
        return cls("chain", key, max_num_seqs, TokenTree.chain(num_speculative_tokens))

    @classmethod
    def of_tree(cls, name: str, tree: TokenTree, max_num_seqs: int) -> Arm:
        """`name` is a tree's, or a file's."""
        name = Path(name).name.removesuffix(".json")
        return cls("tree", f"{name}-b{max_num_seqs}", max_num_seqs, tree, name)

    def plan(self, params: Params) -> EnginePlan:
        """The engine it needs. UserError where it cannot run; costs nothing: ask before fetching models."""
        return EnginePlan.of(params, self.max_num_seqs, self.tree)


@dataclass(frozen=True)
class Inputs:
    """What the stages before have prepared."""

    manifest: dict[str, Any]  # results/models.json
    environment: dict[str, Any]  # results/environment.json
    rows: list[gsm8k.Row]
    dataset_source: str


@dataclass(frozen=True)
class Measured:
    """What the engine did within the clock."""

    passes: list[Pass]
    counters: Counters
    stats: dict[str, Any] | None  # the plugin's
    forward_ms: float | None  # the baseline's mean forward pass


def run_arm(params: Params, arm: Arm, plan: EnginePlan, inputs: Inputs, results: Path) -> dict[str, Any]:
    """Measure one arm and write its folder; returns the metrics. One failed request fails the arm."""
    from transformers import AutoTokenizer

    paths = {role: model["path"] for role, model in inputs.manifest.items()}
    tokenizer = AutoTokenizer.from_pretrained(
        paths["target"], trust_remote_code=plan.arguments["trust_remote_code"]
    )
    prompts = gsm8k.build_prompts(inputs.rows, tokenizer, params.dataset.prompt_format)
    gsm8k.check_lengths(prompts, params.sampling.max_tokens, params.engine.max_model_len)
    probe_before = measure_probe(params.engine.device)
    llm = plan.start(paths["target"], paths.get("draft"))
    runner = Runner(llm, params, prompts, inputs.rows, tokenizer.decode)
    measured = _measure(runner, arm, plan.uses_plugin)
    probes = {"before": probe_before, "after": measure_probe(params.engine.device)}
    figures = _figures(params, arm, inputs, measured, probes)
    _check_speculated(arm, figures)
    with atomic_folder(results / arm.name / arm.key) as folder:
        write_json(folder / "metrics.json", figures)
        write_requests(measured.passes, folder / "requests.parquet", explained=arm.tree is None)
    return figures


def _measure(runner: Runner, arm: Arm, uses_plugin: bool) -> Measured:
    measure, title = runner.params.measure, f"{arm.name} {arm.key}"
    if measure.warmup_prompts:
        runner.run(0, "warm-up", count=measure.warmup_prompts)
    if uses_plugin:
        runner.llm.collective_rpc("treespec_stats", args=(True,))
    before = Counters.read(runner.llm)
    passes = [
        runner.run(repeat, f"{title}: pass {repeat + 1} of {measure.repeats}")
        for repeat in range(measure.repeats)
    ]
    counters = Counters.read(runner.llm).since(before)
    stats = runner.llm.collective_rpc("treespec_stats")[0] if uses_plugin else None
    return Measured(passes, counters, stats, runner.explain(passes[0]) if arm.tree is None else None)


def _figures(
    params: Params, arm: Arm, inputs: Inputs, measured: Measured, probes: dict[str, Any]
) -> dict[str, Any]:
    """metrics.json."""
    counters, stats = measured.counters, measured.stats
    times = metrics.times(measured.passes)
    wall = times["wall_time_s"]
    return {
        "arm": arm.name,
        "key": arm.key,
        "device": inputs.environment["device_name"],
        "dtype": params.engine.dtype,
        "dataset_source": inputs.dataset_source,
        "prompt_format": params.dataset.prompt_format,
        "num_prompts": len(inputs.rows),
        "repeats": params.measure.repeats,
        "max_num_seqs": arm.max_num_seqs,
        "sampling": params.sampling.model_dump(),
        **times,
        "num_steps": counters.num_steps,
        "speculation": metrics.speculation(arm.tree, arm.tree_name, counters, stats) if arm.tree else None,
        "step_ms": metrics.step_ms(wall, counters.num_steps, stats, measured.forward_ms),
        "plugin": {"acted": stats["num_verified_trees"] > 0, **stats} if stats else None,
        "roofline_share": _roofline_share(params, inputs, measured, probes, wall),
        "weight_bytes": inputs.manifest["target"]["weight_bytes"],
        "models": {role: model["reference"] for role, model in inputs.manifest.items()},
        "probe": probes,
        "environment": inputs.environment,
        "vllm_version": VLLM_VERSION,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _roofline_share(
    params: Params, inputs: Inputs, measured: Measured, probes: dict[str, Any], wall_time_s: float
) -> float | None:
    """None for stock speculation, which does not count its draft's passes."""
    engine, manifest = params.engine, inputs.manifest
    read = [(measured.counters.num_steps, manifest["target"]["pass_bytes"] / engine.tensor_parallel_size)]
    if measured.stats is not None:
        draft_bytes = manifest["draft"]["pass_bytes"] / engine.draft_tensor_parallel_size
        read.append((measured.stats["num_draft_passes"], draft_bytes))
    elif measured.forward_ms is None:
        return None
    return metrics.roofline_share(wall_time_s, probes["before"]["memory_bandwidth_gb_per_s"], read)


def _check_speculated(arm: Arm, figures: dict[str, Any]) -> None:
    """An arm in which nothing was drafted would be a baseline under another name."""
    if arm.tree is None or figures["speculation"]["num_drafts"]:
        return
    if any(one["num_output_tokens"] > 2 * figures["num_prompts"] for one in figures["passes"]):
        raise UserError(f"{arm.name} {arm.key}", "no drafts", "speculation to act; nothing was written")
