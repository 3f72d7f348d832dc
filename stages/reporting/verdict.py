"""What a reader wants to know first, in words: faster, by how much, unchanged, up to which batch, why.

verdict = judge(analysis)
verdict.kind        # use | off | undecided
verdict.sentence    # the recommendation, one sentence, from measured arms with their intervals
verdict.answers     # four (question, answer, detail, tone); tone: good | bad | warn | plain
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stages.reporting.analysis import Analysis, ArmResult, best_of
from stages.reporting.costs import tokens_per_step
from stages.reporting.statistics import Ratio

NEAR_TIES = {"identical": "identical", "near_ties": "near-ties", "not_lossless": "NOT LOSSLESS"}
WORDS = NEAR_TIES | {"not_tested": "not tested", "same_distribution": "same distribution"}


@dataclass(frozen=True)
class Answer:
    question: str
    answer: str
    detail: str
    tone: Literal["good", "bad", "warn", "plain"]


@dataclass(frozen=True)
class Verdict:
    kind: Literal["use", "off", "undecided"]
    best: ArmResult | None
    headline: str
    sentence: str
    answers: tuple[Answer, ...]
    pays_at: tuple[int, ...]


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(ratio: Ratio | None) -> str:
    """'1.55 to 1.70', or why there is none."""
    if ratio is None or ratio.value is None:
        return "not measured"
    return f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.has_interval else "no interval from one prompt"


def setting(result: ArmResult) -> str:
    return f"{result.name.label} at batch {result.name.max_num_seqs}"


def lossless_words(result: ArmResult) -> str:
    """'identical', 'near-ties (2 of 24)', 'NOT LOSSLESS (1 of 24)' ..."""
    found = result.losslessness
    if found is None:
        return "–"
    counts = {"near_ties": len(found.divergences), "not_lossless": len(found.divergences)}.get(found.verdict)
    return f"{WORDS[found.verdict]} ({counts} of {found.num_compared})" if counts else WORDS[found.verdict]


def judge(analysis: Analysis) -> Verdict:
    best = best_of(analysis.compared)
    level = f"{analysis.bootstrap.confidence:.0%} interval"
    pays_at = tuple(
        batch for batch in analysis.batches if (top := analysis.best_at(batch)) and top.surely_faster
    )
    kind, headline, sentence = _recommendation(analysis, best, level, pays_at)
    named = best if kind == "use" else None
    answers = (
        _faster(analysis, best, kind, level),
        _unchanged(analysis),
        _batch(analysis, kind, pays_at),
        _why(best),
    )
    return Verdict(kind, named, headline, sentence, answers, pays_at)


def _recommendation(analysis: Analysis, best: ArmResult | None, level: str, pays_at: tuple[int, ...]):
    if best is None:
        reason = "no arm kept the output unchanged" if analysis.compared else "no arm could be compared"
        return "off", "No: leave speculation off", f"Leave speculation off: {reason}."
    speedup = f"{times(best.speedup.value)} ({level} {interval(best.speedup)})"
    if not best.speedup.has_interval:
        return (
            "undecided",
            "No winner can be named",
            f"No winner can be named: one prompt gives no interval (highest: {setting(best)}, "
            f"{times(best.speedup.value)}); raise dataset.num_prompts.",
        )
    if best.speedup.low <= 1:
        return (
            "off",
            "No: leave speculation off",
            f"Leave speculation off: no arm is surely faster here (highest: {setting(best)}, {speedup}).",
        )
    if best.drifted:
        return (
            "undecided",
            "No winner can be named",
            f"No winner can be named: the machine itself drifted by {percent(best.drift)}, as much as the "
            f"effect (highest: {setting(best)}, {speedup}); measure again on a quiet machine.",
        )
    sentence = f"Use {setting(best)}: {times(best.speedup.value)} as fast as vLLM without speculation "
    sentence += f"({level} {interval(best.speedup)}); {_reach(analysis, best, pays_at)}."
    return "use", f"Yes: {times(best.speedup.value)} as fast", sentence


def _reach(analysis: Analysis, best: ArmResult, pays_at: tuple[int, ...]) -> str:
    """Up to which batch size it pays, with the evidence there."""
    batches = analysis.batches
    if len(batches) == 1:
        return "no other batch size was measured"
    if list(pays_at) != batches[: len(pays_at)]:
        return "speculation pays at batch " + ", ".join(map(str, pays_at)) + " only, of those measured"
    last = analysis.best_at(pays_at[-1])
    there = (
        ""
        if last is best
        else f" (there {last.name.label}, {times(last.speedup.value)}, {interval(last.speedup)})"
    )
    if len(pays_at) == len(batches):
        return f"speculation pays up to batch {pays_at[-1]}, the largest measured{there}"
    beyond = batches[len(pays_at)]
    return f"speculation pays up to batch {pays_at[-1]}{there}; at batch {beyond} no arm is surely faster"


def _faster(analysis: Analysis, best: ArmResult | None, kind: str, level: str) -> Answer:
    question = "Is it faster here?"
    if best is None:
        return Answer(question, "No", "No arm could be compared with its output unchanged.", "bad")
    baseline = analysis.baseline(best.name.max_num_seqs)
    detail = f"{level} {interval(best.speedup)}, {best.speedup.n} prompts. {setting(best).capitalize()}: "
    detail += f"{milliseconds(best)} a token instead of {milliseconds(baseline)}."
    tone = {"use": "good", "off": "bad", "undecided": "warn"}[kind]
    answer = {"use": times(best.speedup.value), "off": "Not surely", "undecided": "Undecided"}[kind]
    return Answer(question, answer, detail, tone)


def milliseconds(result: ArmResult | None) -> str:
    value = result.arm.metrics.time_per_token_ms if result else None
    return "–" if value is None else f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def _unchanged(analysis: Analysis) -> Answer:
    question = "Is the output unchanged?"
    arms = [result for result in analysis.speculative if result.losslessness]
    changed = [result for result in arms if result.lossless is False]
    untested = [result for result in arms if result.lossless is None]
    if changed:
        names = ", ".join(setting(result) for result in changed)
        return Answer(question, "NO", f"{len(changed)} of {len(arms)} arms are not lossless: {names}.", "bad")
    if not arms or untested:
        detail = (
            "Sampled output with too few counts for the distribution test." if arms else "No arm to compare."
        )
        return Answer(question, "Not tested", detail, "warn")
    if analysis.sampled:
        return Answer(
            question, "Yes", "Second tokens follow the baseline's distribution in every arm.", "good"
        )
    outputs = sum(result.losslessness.num_compared for result in arms)
    ties = sum(len(result.losslessness.divergences) for result in arms)
    if ties:
        detail = (
            f"{outputs - ties} of {outputs} outputs are identical token by token; {ties} part at a near-tie "
        )
        return Answer(
            question, "Yes, to rounding", detail + f"that {_dtype(analysis)} cannot resolve.", "good"
        )
    return Answer(
        question, "Yes", f"All {outputs} outputs of {len(arms)} arms are identical, token by token.", "good"
    )


def _dtype(analysis: Analysis) -> str:
    return analysis.run.params.engine.dtype


def _batch(analysis: Analysis, kind: str, pays_at: tuple[int, ...]) -> Answer:
    question = "Up to which batch?"
    batches = analysis.batches
    lines = []
    for batch in batches:
        top = analysis.best_at(batch)
        lines.append(
            f"{batch}: {times(top.speedup.value) if top else '–'} ({interval(top.speedup if top else None)})"
        )
    detail = "Best arm by max_num_seqs. " + "; ".join(lines) + "."
    if kind == "undecided":
        return Answer(question, "Undecided", detail, "warn")
    if not pays_at:
        return Answer(question, "No batch", detail, "bad")
    if list(pays_at) != batches[: len(pays_at)]:
        return Answer(question, "Only " + ", ".join(map(str, pays_at)), detail, "warn")
    if len(batches) == 1:
        return Answer(question, f"{batches[0]}, the only measured", detail, "plain")
    if len(pays_at) == len(batches):
        return Answer(question, f"{pays_at[-1]}, the largest measured", detail, "good")
    return Answer(question, str(pays_at[-1]), detail, "plain")


def _why(best: ArmResult | None) -> Answer:
    question = "Why?"
    if best is None or best.step_ratio is None:
        return Answer(question, "–", "No step times were recorded.", "plain")
    tokens = tokens_per_step(best.arm.metrics)
    ratio = best.step_ratio
    detail = (
        f"{setting(best).capitalize()}: {tokens:.2f} tokens a step, a step costs {times(ratio)} a plain one: "
    )
    detail += f"{tokens:.2f} / {ratio:.2f} = {times(tokens / ratio)} expected."
    return Answer(question, f"{tokens:.2f} tokens for {best.step_ratio:.2f} steps", detail, "plain")


def crossing(results: list[ArmResult]) -> float | None:
    """Where one setting's speedup falls through 1, linear in log2 of the batch size; else None."""
    known = [result for result in results if result.speedup and result.speedup.value is not None]
    points = sorted((result.name.max_num_seqs, result.speedup.value) for result in known)
    for (left, above), (right, below) in pairwise(points):
        if above > 1 >= below:
            share = (above - 1) / (above - below)
            return 2 ** (math.log2(left) + share * (math.log2(right) - math.log2(left)))
    return None
