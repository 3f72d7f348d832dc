"""One measured arm: load, warm up, run the prompts `repeats` times, write what happened.

    results/<arm>/<key>/metrics.json      the contract of the numbers (README)
    results/<arm>/<key>/requests.parquet  one row a request and repeat, token ids included; a drafted arm's
                                          `mode` tells its control ("none") from the rest ("drafted")

    results/<arm>/<key>/failed.json       instead of both, where it failed while running

At most `max_num_seqs` requests run at once and the next starts when one ends. One engine answers at every
temperature, one after another. Loading, warm-up, the baseline's explaining pass and a drafted arm's control
pass, undrafted, are outside the clock and the counters. An arm that died goes on where its journal ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import metrics
from stages.common.engine import EnginePlan
from stages.common.errors import UserError
from stages.common.failure import failure_noted
from stages.common.files import atomic_folder, write_json
from stages.common.fingerprint import marks_of
from stages.common.inputs import Inputs, sampling_at
from stages.common.journal import Journal, journal_of
from stages.common.measured import Measured, explain, measure
from stages.common.params import Params
from stages.common.passes import EXPLAINED, NO_DRAFT, Pass, Runner, write_requests
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
    def of_chain(cls, name: str, chain: TokenTree, max_num_seqs: int) -> Arm:
        """`name` is k<length> or kauto."""
        return cls("chain", f"{name}-b{max_num_seqs}", max_num_seqs, chain)

    @classmethod
    def of_tree(cls, name: str, tree: TokenTree, max_num_seqs: int) -> Arm:
        """`name` is a tree's, or a file's."""
        name = Path(name).name.removesuffix(".json").removesuffix(f"-b{max_num_seqs}")
        return cls("tree", f"{name}-b{max_num_seqs}", max_num_seqs, tree, name)

    def plan(self, params: Params) -> EnginePlan:
        """The engine it needs. UserError where it cannot run; costs nothing: ask before fetching models."""
        return EnginePlan.of(params, self.max_num_seqs, self.tree)


@dataclass(frozen=True)
class Session:
    """All that one engine was asked."""

    measured: list[Measured]  # by temperature, in params' order
    forward_share: float | None  # of the baseline's time
    control: Pass | None  # the plugin's engine, undrafted, at the end


def run_arm(params: Params, arm: Arm, plan: EnginePlan, inputs: Inputs, results: Path) -> dict[str, Any]:
    """Measure one arm and write its folder; returns the metrics. One failed request fails the arm."""
    tokenizer, prompts = inputs.prompts(params)
    device, target = params.engine.device, results / arm.name / arm.key
    marks = marks_of(params, inputs, [plan.arguments, plan.environment])
    name = f"{arm.name}-{arm.key}"
    with journal_of(results, name, marks, plan.why_no_journal) as journal, failure_noted(target):
        probe_before = journal.keep("probe", lambda: measure_probe(device))
        llm = plan.start(inputs.path("target"), inputs.path("draft"))
        runner = Runner(llm, params, prompts, inputs.rows, tokenizer.decode)
        session = _measure(runner, arm, plan.uses_plugin, journal)
        probes = {"before": probe_before, "after": measure_probe(device)}
        figures = _figures(params, arm, inputs, session, probes)
        figures |= {"marks": marks, "resumed": journal.resumed}
        passes = [one for measured in session.measured for one in measured.passes]
        passes += [session.control] if session.control else []
        with atomic_folder(target) as folder:
            write_json(folder / "metrics.json", figures)
            write_requests(passes, folder / "requests.parquet", ("mode",) if arm.tree else EXPLAINED)
    return figures


def _measure(runner: Runner, arm: Arm, uses_plugin: bool, journal: Journal) -> Session:
    measured = [
        _measure_at(runner, arm, uses_plugin, temperature, journal)
        for temperature in runner.params.sampling.temperature
    ]
    if arm.tree is None:
        greedy = next((one for one in measured if one.temperature == 0), measured[0])
        return Session(measured, explain(runner, journal, greedy.passes[0], arm.max_num_seqs), None)
    if not uses_plugin:
        return Session(measured, None, None)
    runner.warm_up(tree=NO_DRAFT)
    control = measure(
        runner,
        journal,
        f"{arm.name} {arm.key}: control, undrafted",
        temperature=runner.params.sampling.temperature[0],
        max_num_seqs=arm.max_num_seqs,
        uses_plugin=True,
        repeats=1,
        tree=NO_DRAFT,
    )
    return Session(measured, None, control.passes[0])


def _measure_at(
    runner: Runner, arm: Arm, uses_plugin: bool, temperature: float, journal: Journal
) -> Measured:
    runner.warm_up(temperature)
    measured = measure(
        runner,
        journal,
        f"{arm.name} {arm.key}, temperature {temperature:g}",
        temperature=temperature,
        max_num_seqs=arm.max_num_seqs,
        uses_plugin=uses_plugin,
    )
    _check_speculated(arm, measured)
    return measured


def _check_speculated(arm: Arm, measured: Measured) -> None:
    """An arm in which nothing was drafted would be a baseline under another name."""
    if arm.tree is None or measured.counters.num_drafts:
        return
    if any(one.num_output_tokens > 2 * len(one.requests) for one in measured.passes):
        raise UserError(f"{arm.name} {arm.key}", "no drafts", "speculation to act")


def _figures(
    params: Params, arm: Arm, inputs: Inputs, session: Session, probes: dict[str, Any]
) -> dict[str, Any]:
    """metrics.json."""
    first, *others = (
        _figures_at(params, arm, inputs, measured, session.forward_share, probes)
        for measured in session.measured
    )
    control = {} if session.control is None else {"control": _control(session)}
    return {
        "arm": arm.name,
        "key": arm.key,
        **inputs.head(params, arm.max_num_seqs),
        **first,
        "at_temperature": {str(other["sampling"]["temperature"]): other for other in others},
        **control,
        **inputs.tail(probes),
        "vllm_version": VLLM_VERSION,
    }


def _figures_at(
    params: Params,
    arm: Arm,
    inputs: Inputs,
    measured: Measured,
    forward_share: float | None,
    probes: dict[str, Any],
) -> dict[str, Any]:
    """What depends on the passes."""
    counters, stats = measured.counters, measured.stats
    times = metrics.times(measured.passes)
    wall = times["wall_time_s"]
    return {
        "sampling": sampling_at(params, measured.temperature),
        **times,
        "num_steps": counters.num_steps,
        "speculation": metrics.speculation(arm.tree, arm.tree_name, counters, stats) if arm.tree else None,
        "step_ms": metrics.step_ms(wall, counters.num_steps, stats, forward_share),
        "plugin": {"acted": stats["num_verified_trees"] > 0, **stats} if stats else None,
        "roofline_share": _roofline_share(params, arm, inputs, measured, probes, wall),
    }


def _control(session: Session) -> dict[str, Any]:
    """The repeated baseline by which drift shows; what drafting changed, where that can be told by tokens."""
    first = session.measured[0]
    same = metrics.same_share([session.control], first.passes) if first.temperature == 0 else None
    return {**metrics.totals([session.control]), "same_as_none": same}


def _roofline_share(
    params: Params,
    arm: Arm,
    inputs: Inputs,
    measured: Measured,
    probes: dict[str, Any],
    wall_time_s: float,
) -> float | None:
    """None for stock speculation, which does not count its draft's passes."""
    engine, manifest = params.engine, inputs.manifest
    read = [(measured.counters.num_steps, manifest["target"]["pass_bytes"] / engine.tensor_parallel_size)]
    if measured.stats is not None:
        draft_bytes = manifest["draft"]["pass_bytes"] / engine.draft_tensor_parallel_size
        read.append((measured.stats["num_draft_passes"], draft_bytes))
    elif arm.tree is not None:
        return None
    return metrics.roofline_share(wall_time_s, probes["before"]["memory_bandwidth_gb_per_s"], read)
