"""Stage interleaved: every mode in one engine, in random order, so that every prompt is its own control.

    python -m stages.interleaved --max-num-seqs 1

A mode is what a request is drafted along: nothing ("none"), a chain or a tree of params.yaml. A group of
max_num_seqs prompts is answered in all modes one right after the other, in an order drawn anew each time:
what drifts with the machine or the engine cancels within the group. At the first temperature.

Writes results/interleaved/b<max_num_seqs>/metrics.json and requests.parquet: the usual columns, the mode, the
group, and what its group took: seconds, drafts and accepted tokens. One that died goes on after the last
group it answered in all modes. Where measure.interleaved is false, or there is no plugin to switch modes,
that is all that they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.common import metrics, options
from stages.common.counters import Counters
from stages.common.engine import EnginePlan
from stages.common.errors import UserError, run_cli
from stages.common.failure import failure_noted
from stages.common.files import atomic_folder, write_json
from stages.common.fingerprint import marks_of
from stages.common.inputs import Inputs
from stages.common.journal import Journal, Piece, journal_of
from stages.common.measured import pass_of, total
from stages.common.params import Params
from stages.common.passes import NO_DRAFT, Pass, Runner, write_requests
from stages.common.probe import measure_probe
from stages.common.trees import chain_name, chain_of, tree_of
from treespec.tree import TokenTree
from treespec.vllm_plugin import VLLM_VERSION

COLUMNS = ("mode", "group", "group_wall_time_s", "group_num_drafts", "group_num_accepted_tokens")
Modes = dict[str, TokenTree | str]


def main() -> None:
    flags = options.parser("stages.interleaved", __doc__)
    options.add_draft_flags(flags)
    arguments = flags.parse_args()
    params = options.read_params(arguments, options.draft_values(arguments))
    size = options.only_batch_size(params)
    folder = arguments.results / "interleaved" / f"b{size}"
    if not params.measure.interleaved:
        write(folder, {"asked": False}, [])
    elif params.speculation.implementation == "stock":
        write(folder, {"asked": False, "reason": "stock vLLM cannot draft each request another way"}, [])
    else:
        modes = modes_of(params, arguments.results, size)
        plan = EnginePlan.of(params, size, largest_tree(modes))
        inputs = options.read_inputs(arguments, params, plan)
        shapes = {mode: tree if tree == NO_DRAFT else list(tree.parents) for mode, tree in modes.items()}
        marks = marks_of(params, inputs, [plan.arguments, plan.environment, shapes])
        name = f"interleaved-b{size}"
        with journal_of(arguments.results, name, marks, plan.why_no_journal) as journal:
            figures, passes = measure(params, inputs, plan, modes, folder, journal)
            write(folder, figures | {"marks": marks, "resumed": journal.resumed}, passes)


def modes_of(params: Params, results: Path, max_num_seqs: int) -> Modes:
    """Every mode by name, its tree as the arm drafts it."""
    modes: Modes = {"none": NO_DRAFT}
    for length in params.speculation.chain.num_speculative_tokens:
        modes[f"chain-{chain_name(length)}"] = chain_of(length, max_num_seqs, results)
    for name in params.speculation.tree.names:
        modes[f"tree-{name}"] = tree_of(params, name, max_num_seqs, results)
    return modes


def largest_tree(modes: Modes) -> TokenTree:
    """The tree that an engine must have room for."""
    trees = [tree for tree in modes.values() if isinstance(tree, TokenTree)]
    return max(trees, key=lambda tree: tree.num_nodes)


def schedule(
    num_groups: int, repeats: int, modes: Sequence[str], rng: np.random.Generator
) -> list[tuple[int, int, str]]:
    """(repeat, group, mode) in the order of running: a group's modes side by side, both orders drawn."""
    return [
        (repeat, int(group), modes[mode])
        for repeat in range(repeats)
        for group in rng.permutation(num_groups)
        for mode in rng.permutation(len(modes))
    ]


def measure(
    params: Params, inputs: Inputs, plan: EnginePlan, modes: Modes, folder: Path, journal: Journal
) -> tuple[dict[str, Any], list[Pass]]:
    """The figures and all groups' passes; failed.json in `folder` if the engine or a request fails."""
    tokenizer, prompts = inputs.prompts(params)
    size = plan.arguments["max_num_seqs"]
    with failure_noted(folder):
        probe_before = journal.keep("probe", lambda: measure_probe(params.engine.device))
        llm = plan.start(inputs.path("target"), inputs.path("draft"))
        runner = Runner(llm, params, prompts, inputs.rows, tokenizer.decode)
        for tree in modes.values():
            runner.warm_up(tree=tree)
        passes, stats = run_groups(runner, modes, size, journal)
        if not stats["num_verified_trees"]:
            raise UserError("interleaved", "no drafts", "speculation to act")
        probes = {"before": probe_before, "after": measure_probe(params.engine.device)}
    is_greedy = params.sampling.temperature[0] == 0
    figures = {
        "asked": True,
        **inputs.head(params, size),
        "modes": {mode: figures_of(own, passes["none"], is_greedy) for mode, own in passes.items()},
        "plugin": {"acted": True, **stats},
        **inputs.tail(probes),
        "vllm_version": VLLM_VERSION,
    }
    return figures, [one for own in passes.values() for one in own]


def run_groups(
    runner: Runner, modes: Modes, size: int, journal: Journal
) -> tuple[dict[str, list[Pass]], dict[str, Any]]:
    """Every group in every mode, `measure.repeats` times, and the plugin's counters over all of it.

    A pass is one group in one mode; a piece of the journal is one group in all modes, side by side.
    """
    params = runner.params
    groups = [
        range(len(runner.prompts))[first : first + size] for first in range(0, len(runner.prompts), size)
    ]
    order = schedule(
        len(groups), params.measure.repeats, list(modes), np.random.default_rng(params.sampling.seed)
    )
    blocks = [(*key, [mode for *_, mode in own]) for key, own in groupby(order, key=lambda one: one[:2])]

    def answer(repeat: int, group: int, own: list[str]) -> Piece:
        runner.llm.collective_rpc("treespec_stats", args=(True,))
        passes, accepted = {}, {}
        for mode in own:
            before = Counters.read(runner.llm)
            passes[mode] = asdict(runner.run(repeat, None, indices=groups[group], tree=modes[mode]))
            counted = Counters.read(runner.llm).since(before)
            accepted[mode] = {
                "group_num_drafts": counted.num_drafts,
                "group_num_accepted_tokens": counted.num_accepted_tokens,
            }
        stats = runner.llm.collective_rpc("treespec_stats")[0]
        return {"passes": passes, "accepted": accepted, "stats": stats}

    pieces = [
        journal.once(f"repeat {repeat}, group {group}", partial(answer, repeat, group, own))
        for repeat, group, own in tqdm(blocks, desc=f"interleaved b{size}", unit="group")
    ]
    passes: dict[str, list[Pass]] = {mode: [] for mode in modes}
    for (_, group, own), piece in zip(blocks, pieces, strict=True):
        for mode in own:
            done = pass_of(piece["passes"][mode])
            took = {"group_wall_time_s": done.wall_time_s, **piece["accepted"][mode]}
            for request in done.requests:
                request |= {"mode": mode, "group": group, **took}
            passes[mode].append(done)
    return passes, total([piece["stats"] for piece in pieces])


def figures_of(passes: list[Pass], undrafted: list[Pass], is_greedy: bool) -> dict[str, Any]:
    """One mode's figures over all its groups."""
    same = metrics.same_share(passes, undrafted) if is_greedy else None
    return {**metrics.totals(passes), "same_as_none": same}


def write(folder: Path, figures: dict[str, Any], passes: list[Pass]) -> None:
    """metrics.json and requests.parquet in `folder`, and a line a mode for people."""
    with atomic_folder(folder) as written:
        write_json(written / "metrics.json", figures)
        write_requests(passes, written / "requests.parquet", COLUMNS)
    if not figures["asked"]:
        print(f"{folder}: not measured: {figures.get('reason', 'measure.interleaved is false')}")
    for mode, own in figures.get("modes", {}).items():
        print(f"{mode:24} {own['time_per_token_ms']:8.2f} ms a token, {own['num_output_tokens']} tokens")


if __name__ == "__main__":
    run_cli(main)
