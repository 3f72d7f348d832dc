"""The sentences around the numbers: banners, rules, checks, facts. True of the run they are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult
from stages.reporting.drift import widened
from stages.reporting.facts import counted, sources_of
from stages.reporting.lossless import ERROR_RATE, TOLERANCE
from stages.reporting.predicted import median_error
from stages.reporting.statistics import FEW_PROMPTS
from stages.reporting.verdict import crossing
from stages.reporting.words import at_temperature, interval, percent, times

PUBLISHED = (
    (
        "Chen et al. 2023, arXiv 2302.01318, table 1",
        "Chinchilla 70B with a 4B draft, 4 drafted tokens, batch 1",
        "1.92× to 2.46×",
    ),
    (
        "Author of vLLM pull request 24322",
        "Llama-3.3-70B with a 1B draft, two H100, 8 drafted tokens; the 43 ms baseline is twice its floor",
        "3.55× at concurrency 1, 2.02× at 32, 1.32× at 64",
    ),
    (
        "Spec-Bench, mathematics, A100",
        "Vicuna 7B / 13B / 33B with a draft model, batch 1",
        "1.47× / 1.58× / 1.66×",
    ),
    (
        "SpecDecode-Bench, arXiv 2601.11580, read off a plot",
        "vLLM, GSM8K, Llama-3-70B on H100 with a draft model, 3 drafted tokens",
        "2.35× at batch 1, 1.26× at 128",
    ),
)
ABSENT = {
    "speedup": "No arm could be compared with its baseline.",
    "batch": "One batch size was measured; list more under engine.max_num_seqs to see where the gain ends.",
    "acceptance": "Nothing was drafted, so there is no acceptance to show.",
    "step_cost": "No arm recorded the times of its steps.",
    "roofline": "No time per token was recorded.",
    "drafted": "No time per token was recorded.",
    "temperature": "One temperature was measured; list more under sampling.temperature.",
}
ROOFLINE_RULE = (
    "Without speculation every step must read the target's weights once and multiply each with every token, "
    "so a token costs at least weight bytes / memory bandwidth / batch, and at least 2 FLOP a weight / "
    "matmul rate: the larger is the floor, by the fastest that any probe of this run saw. A baseline far "
    "from it flatters every speedup over that baseline; an arm beyond 100 % of it beats what plain decoding "
    "could ever do here. Reading weights: the part of the wall time that takes, the draft's included."
)


class Banner(NamedTuple):
    tone: str
    title: str
    text: str


def banners(analysis: Analysis) -> Iterator[Banner]:
    """What must not be overlooked, the worst first."""
    if analysis.changed:
        names = ", ".join(at_temperature(analysis, result) for result in analysis.changed)
        yield Banner("bad", "NOT LOSSLESS: the output has changed", f"Differs beyond rounding: {names}.")
    for name, error in analysis.run.failed.items():
        text = f"{error} (The other arms are reported; the run is incomplete.)"
        yield Banner("bad", f"FAILED: {name}", text)
    if any("synthetic" in source for source in sources_of(analysis)):
        text = "No source of the real data answered; accuracy means little."
        yield Banner("warn", "Synthetic questions, not GSM8K", text)
    prompts = analysis.run.params.dataset.num_prompts
    if prompts < FEW_PROMPTS:
        text = (
            "One prompt gives no interval." if prompts == 1 else "Intervals of so few prompts are too narrow."
        )
        yield Banner("warn", f"Only {counted(prompts, 'prompt')}", text)


def lossless_rule(analysis: Analysis) -> str:
    """How greedy and sampled outputs are judged, as far as this run has them."""
    dtype = analysis.run.params.engine.dtype
    greedy = (
        "Every greedy output is compared with the baseline's first repeat, token by token, lengths included. "
        "One excuse is accepted, a near-tie: the arm chose another of the baseline's best tokens, within "
        f"{TOLERANCE[dtype]:g} of the best in log-probability, what {dtype} cannot resolve (4 units in the "
        f"last place of a logit of 16 to 32; {TOLERANCE['bfloat16']:g} bfloat16, "
        f"{TOLERANCE['float16']:g} float16, {TOLERANCE['float32']:g} float32, where long sums set it). "
        "The baseline's own row compares its repeats with each other."
    )
    sampled = (
        "Sampled output differs from run to run, so its distribution is tested: arm against baseline at the "
        "same temperature, by the energy distance of token histograms, labels permuted within each prompt "
        f"({ERROR_RATE:.0%} false alarms for the whole report). It notices outputs made of other tokens, as "
        "a skewed, sharpened or flattened sampler makes them; not the order of tokens, rare tokens or a "
        "small bias. Those the exact proofs in the tests exclude. With too few outputs a prompt nothing is "
        "claimed."
    )
    kinds = {one.sampled for one in analysis.every}
    return " ".join(text for is_sampled, text in ((False, greedy), (True, sampled)) if is_sampled in kinds)


def drift(analysis: Analysis) -> Iterator[str]:
    """What the intervals allow for, and from what that is known."""
    found, level = analysis.drift, f"{analysis.bootstrap.confidence:.0%}"
    if found is None:
        yield (
            "No engine of this run did the baseline's work a second time, so it is not known how far two "
            "engines lie apart, and intervals are over prompts alone: too narrow on an unsteady machine."
        )
        return
    controls = any(arm.control is not None for arm in analysis.run.arms.values())
    again = [
        *(["every drafted arm ends with it, its control"] if controls else []),
        *(["the stock baseline does it again when all arms are done"] if analysis.run.again else []),
    ]
    yield (
        "Baseline and arm run in engines of their own, minutes apart, and prompts do not show how far that "
        f"moves a time. The same undrafted work does: {', and '.join(again)}."
    )
    for batch in analysis.batches:
        ratios = [one.ratio.value for one in found.at(batch)]
        if ratios:
            engines = counted(len(ratios), "further engine")
            took = f"{min(ratios):.2f} to {max(ratios):.2f} times"
            yield f"At batch {batch}, {engines} took {took} as long for it as the baseline had."
    yield (
        f"That is a standard deviation of {percent(found.sd, 1)} between engines "
        f"({counted(found.freedom, 'degree')} of freedom), so two may lie a factor {found.factor:.2f} apart "
        f"by drift alone ({level}). Every interval between engines holds that beside the spread over "
        "prompts, so arms of one setting may differ by as much. Where drift keeps an interval from clearing "
        "1, no winner is named; only the interleaved measurement can. The bandwidth probe, half a second "
        "before and after an arm, is shown and decides nothing."
    )


def predictions(analysis: Analysis) -> str:
    """The median error of the cost model, or '' without predictions."""
    found = [result.predicted for result in analysis.results.values() if result.predicted]
    if not found:
        return ""
    outside = sum(one.outside for one in found)
    return (
        "The calibration's cost model missed the measured time per token by "
        f"{percent(median_error(found), 1)} in the median of {len(found)} arms. It was made from "
        f"{found[0].foretold.n} other questions; its interval is what as many of those as an arm answers, "
        f"drawn at random, would take. In {outside} arms it has nothing in common with the measured one."
    )


def interleaving(analysis: Analysis) -> Iterator[str]:
    """What the undrafted mode of the interleaved engine says of the stock baseline."""
    level = f"{analysis.bootstrap.confidence:.0%}"
    for batch, side in analysis.interleaved.items():
        found = side.none_ratio
        if found is None or found.value is None:
            continue
        if not found.has_interval:
            said = "no interval from one prompt"
        elif found.contains(1.0):
            said = "no difference that can be told"
        else:
            said = f"a difference of {percent(abs(found.value - 1), 1)}"
        yield (
            f"At batch {batch} the undrafted mode takes {times(found.value)} the stock baseline's time per "
            f"token ({level} interval {interval(found)}): {said}. That interval allows for drift between the "
            f"two engines; those within this one are over {side.unit}."
        )


def peer(analysis: Analysis) -> str:
    """What the peer is, or why it was not measured; '' if nobody asked."""
    if analysis.peer is None:
        return ""
    if analysis.peer.reason:
        return f"The peer was not measured: {analysis.peer.reason}."
    best = analysis.peer.best
    ours = f" Our best arm there: {best.name.label}." if best else ""
    return (
        f"Hugging Face transformers {analysis.peer.version or ''} with the same models, prompts and machine, "
        "at batch 1, alone and with assisted generation by the same draft. Its speedup is over its own plain "
        f"generation, not over vLLM's: compare the times.{ours}"
    )


def peer_ratios(analysis: Analysis) -> str:
    """The peer's ratios, each with both sides; '' where it was not measured."""
    found = analysis.peer.assisted if analysis.peer else None
    if found is None:
        return ""
    own = f"{times(found.own.value)} ({interval(found.own)}) over its own plain generation"
    if analysis.peer.best is None:
        return f"transformers assisted: {own}"
    ours = f"{times(found.ours.value)} ({interval(found.ours)}) as fast"
    return f"transformers assisted: {own}; {analysis.peer.best.name.label} is {ours}"


def crossings(analysis: Analysis) -> Iterator[str]:
    """Where each setting stops paying, between two measured batch sizes."""
    if len(analysis.batches) < 2:
        return
    by_label: dict[str, list[ArmResult]] = {}
    for result in analysis.compared:
        by_label.setdefault(result.name.label, []).append(result)
    points = {label: crossing(_points(results, "value")) for label, results in by_label.items()}
    for label, point in points.items():
        if point is not None:
            ends = [crossing(_points(by_label[label], end)) for end in ("low", "high")]
            if None in ends:
                said = "by the ends of the intervals it may be at any batch measured, or beyond"
            else:
                said = f"by the ends of the intervals {ends[0]:.0f} to {ends[1]:.0f}"
            yield f"{label.capitalize()} stops paying at about batch {point:.0f} (interpolated; {said})."
    if points and not any(points.values()):
        first, last = analysis.batches[0], analysis.batches[-1]
        yield f"No setting falls from gain to loss between batch {first} and {last}."


def _points(results: list[ArmResult], end: str) -> list[tuple[int, float | None]]:
    return [(result.name.max_num_seqs, getattr(result.speedup, end)) for result in results]


def aa_checks(analysis: Analysis) -> Iterator[str]:
    """The baseline against itself, by batch size, with the interval that speedups have."""
    level = f"{analysis.bootstrap.confidence:.0%}"
    for batch, over_prompts in analysis.aa_checks.items():
        ratio = widened(analysis.drift, over_prompts)
        said = "which contains 1, as it must" if ratio.contains(1.0) else "which misses 1: drift, or chance"
        if not ratio.has_interval:
            said = "so it cannot be judged"
        alone = f"; over prompts alone {interval(over_prompts)}" if ratio != over_prompts else ""
        yield (
            f"A/A check at batch {batch}: the baseline's even repeats against its odd ones give "
            f"{times(ratio.value)} ({level} interval {interval(ratio)}{alone}), {said}."
        )
