"""Passes over the prompts, each in parts that a journal keeps, and what the engine counted within them.

    measured = measure(runner, journal, "chain k3-b1", temperature=0.0, max_num_seqs=4, uses_plugin=True)
    measured.passes[0].wall_time_s, measured.counters.num_drafts

A part is so many prompts that its batch runs empty only after PART_DEPTH answers a sequence: it costs minutes
to measure again, and its end costs every arm the same percent or so of its throughput. At a batch of one it
costs nothing, and the default experiment's passes are one part each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from typing import Any

from stages.common.counters import Counters
from stages.common.journal import Journal, Piece
from stages.common.passes import Pass, Runner
from treespec.tree import TokenTree

PART_DEPTH = 32


@dataclass(frozen=True)
class Measured:
    """What the engine did within the clock, at one temperature."""

    temperature: float
    passes: list[Pass]
    counters: Counters
    stats: dict[str, Any] | None  # the plugin's


def parts_of(num_prompts: int, max_num_seqs: int) -> list[range]:
    size = PART_DEPTH * max_num_seqs
    return [range(num_prompts)[first : first + size] for first in range(0, num_prompts, size)]


def measure(
    runner: Runner,
    journal: Journal,
    title: str,
    *,
    temperature: float,
    max_num_seqs: int,
    uses_plugin: bool,
    repeats: int | None = None,
    tree: TokenTree | str | None = None,
) -> Measured:
    """`repeats` passes, params' number by default, drafted along `tree` as Runner.run has it."""
    parts = parts_of(len(runner.prompts), max_num_seqs)
    repeats = runner.params.measure.repeats if repeats is None else repeats
    passes, pieces = [], []
    for repeat in range(repeats):
        own = []
        for number, indices in enumerate(parts):
            named = f"{title}: pass {repeat + 1} of {repeats}"
            named += f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
            run = partial(runner.run, repeat, named, temperature=temperature, indices=indices, tree=tree)
            own.append(journal.once(named, partial(counted, runner, run, uses_plugin)))
        passes.append(joined([pass_of(piece) for piece in own]))
        pieces += own
    counters = reduce(Counters.plus, (Counters.from_dict(piece["counters"]) for piece in pieces))
    return Measured(temperature, passes, counters, total([piece["stats"] for piece in pieces]))


def counted(runner: Runner, run: Callable[[], Pass], uses_plugin: bool) -> Piece:
    """`run()`'s pass with the counters' and the plugin's differences, as a piece of a journal."""
    llm = runner.llm
    if uses_plugin:
        llm.collective_rpc("treespec_stats", args=(True,))
    before = Counters.read(llm)
    done = run()
    counters = Counters.read(llm).since(before)
    stats = llm.collective_rpc("treespec_stats")[0] if uses_plugin else None
    return {**asdict(done), "counters": asdict(counters), "stats": stats}


def pass_of(piece: Piece) -> Pass:
    return Pass(piece["repeat"], piece["wall_time_s"], piece["requests"])


def joined(parts: Sequence[Pass]) -> Pass:
    """One pass of its parts, which ran one after another."""
    requests = [request for part in parts for request in part.requests]
    return Pass(parts[0].repeat, sum(part.wall_time_s for part in parts), requests)


def total(stats: Sequence[Any]) -> Any:
    """The plugin's counters over several parts: numbers add up, whatever their names; else the last's."""
    last = stats[-1]
    if isinstance(last, dict):
        return {key: total([one[key] for one in stats if key in one]) for key in last}
    if isinstance(last, int | float) and not isinstance(last, bool):
        return sum(stats)
    return last


def explain(runner: Runner, journal: Journal, first: Pass, max_num_seqs: int) -> float:
    """Fill the runners-up of the baseline's `first`, part by part; the share of time that forwards took."""
    forwards = whole = 0.0
    for number, indices in enumerate(parts_of(len(first.requests), max_num_seqs)):
        part = Pass(first.repeat, 0.0, [first.requests[index] for index in indices])
        found = journal.once(f"explained, part {number + 1}", partial(runner.explain, part))
        for request, noted in zip(part.requests, found["noted"], strict=True):
            request |= noted
        forwards, whole = forwards + found["forward_s"], whole + found["wall_time_s"]
    return forwards / whole
