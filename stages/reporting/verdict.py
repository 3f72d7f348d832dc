"""What a reader wants to know first, in words: faster, by how much, unchanged, up to which batch, why.

verdict = judge(analysis)
verdict.kind        # use | off | undecided
verdict.sentence    # the recommendation, one sentence, from measured arms with their intervals
verdict.answers     # four (question, answer, detail, tone); tone: good | bad | warn | plain
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult, best_of
from stages.reporting.costs import tokens_per_step
from stages.reporting.words import apart, at_temperature, interval, milliseconds, setting, times


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
    evidence = best.evidence
    found = f"{times(evidence.value)} ({level} {interval(evidence)})"
    if not evidence.has_interval:
        return (
            "undecided",
            "No winner can be named",
            f"No winner can be named: one prompt gives no interval (highest: {setting(best)}, "
            f"{times(evidence.value)}); raise dataset.num_prompts.",
        )
    if evidence.low <= 1:
        if open_one := best_of([one for one in analysis.compared if one.drifted and not one.by_interleaving]):
            return "undecided", "No winner can be named", _swallowed(analysis, open_one, level)
        return (
            "off",
            "No: leave speculation off",
            f"Leave speculation off: no arm is surely faster here (highest: {setting(best)}, {found}).",
        )
    how = f", {interleaved_note(analysis)}" if best.by_interleaving else ""
    kind = f" at temperature {analysis.temperature:g}" if analysis.sampled else ", greedy"
    sentence = f"Use {setting(best)}{kind}: {times(evidence.value)} as fast as vLLM without speculation "
    sentence += f"({level} {interval(evidence)}{how}); {_reach(analysis, best, pays_at)}."
    return "use", f"Yes: {times(evidence.value)} as fast", sentence


def _swallowed(analysis: Analysis, best: ArmResult, level: str) -> str:
    """Why an arm that is faster over prompts alone is not called so."""
    over = best.over_prompts
    return (
        f"No winner can be named: over the prompts alone {setting(best)} is {times(over.value)} as fast "
        f"({level} {interval(over)}), but engines of this run that did the same work lie "
        f"{apart(analysis.drift)} apart, which makes it {interval(best.speedup)}; measure on a quiet "
        "machine, or interleaved."
    )


def interleaved_note(analysis: Analysis) -> str:
    """Why the figure is not that of separate engines."""
    return (
        "interleaved in one engine, since separate engines that did the same work lie "
        f"{apart(analysis.drift)} apart, as much as the effect"
    )


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
        else f" (there {last.name.label}, {times(last.evidence.value)}, {interval(last.evidence)})"
    )
    if len(pays_at) == len(batches):
        return f"speculation pays up to batch {pays_at[-1]}, the largest measured{there}"
    beyond = batches[len(pays_at)]
    return f"speculation pays up to batch {pays_at[-1]}{there}; at batch {beyond} no arm is surely faster"


def _faster(analysis: Analysis, best: ArmResult | None, kind: str, level: str) -> Answer:
    question = "Is it faster here?"
    if best is None:
        return Answer(question, "No", "No arm could be compared with its output unchanged.", "bad")
    detail = f"{_spread(analysis, best, level)}. {setting(best).capitalize()}: "
    detail += "{} a token instead of {}.".format(*map(milliseconds, _times(analysis, best)))
    detail += "".join(_elsewhere(one, best) for one in analysis.others)
    tone = {"use": "good", "off": "bad", "undecided": "warn"}[kind]
    answer = {"use": times(best.evidence.value), "off": "Not surely", "undecided": "Undecided"}[kind]
    return Answer(question, answer, detail, tone)


def _spread(analysis: Analysis, best: ArmResult, level: str) -> str:
    """The interval of the evidence and what it is over."""
    if not best.evidence.has_interval:
        return interval(best.evidence).capitalize()
    if best.by_interleaving:
        over = f"{best.evidence.n} pairs, interleaved"
    else:
        over = f"{best.evidence.n} prompts" + (" and the drift between engines" if analysis.drift else "")
    return f"{level} {interval(best.evidence)}, over {over}"


def _times(analysis: Analysis, best: ArmResult) -> tuple[float | None, float | None]:
    """Milliseconds a token of the arm and without drafts, measured as its evidence was."""
    batch = best.name.max_num_seqs
    if best.by_interleaving:
        side = analysis.interleaved[batch]
        return side.modes[best.name.name].time_per_token_ms, side.none_ms
    baseline = analysis.baseline(batch)
    return best.arm.metrics.time_per_token_ms, baseline.arm.metrics.time_per_token_ms if baseline else None


def _elsewhere(other: Analysis, best: ArmResult) -> str:
    """The same arm at another temperature: what a gain in greedy decoding does not promise."""
    same = other.results[best.name.name]
    if same.speedup is None or same.speedup.value is None:
        return ""
    found = f"{times(same.speedup.value)} ({interval(same.speedup)})"
    sure = "" if same.surely_faster else ", slower" if same.surely_slower else ", undecided"
    return f" At temperature {other.temperature:g}: {found}{sure}."


def _unchanged(analysis: Analysis) -> Answer:
    question = "Is the output unchanged?"
    arms = [result for one in analysis.every for result in one.speculative if result.losslessness]
    changed = [result for result in arms if result.lossless is False]
    if changed:
        names = ", ".join(at_temperature(analysis, result) for result in changed)
        return Answer(question, "NO", f"{len(changed)} of {len(arms)} arms are not lossless: {names}.", "bad")
    if not arms:
        return Answer(question, "Not tested", "No arm to compare.", "warn")
    detail = " ".join(_sampled_words(one) if one.sampled else _greedy_words(one) for one in analysis.every)
    if all(result.lossless is None for result in arms):
        return Answer(question, "Not tested", detail, "warn")
    if any(result.lossless is None for result in arms):
        return Answer(question, "Yes, where tested", detail, "warn")
    ties = any(result.losslessness.divergences for result in arms)
    return Answer(question, "Yes, to rounding" if ties else "Yes", detail, "good")


def _greedy_words(one: Analysis) -> str:
    arms = [result.losslessness for result in one.speculative if result.losslessness]
    outputs = sum(found.num_compared for found in arms)
    if ties := sum(len(found.divergences) for found in arms):
        dtype = one.run.params.engine.dtype
        return (
            f"{outputs - ties} of {outputs} greedy outputs are identical token by token; {ties} part at a "
            f"near-tie that {dtype} cannot resolve."
        )
    return f"All {outputs} greedy outputs of {len(arms)} arms are identical, token by token."


def _sampled_words(one: Analysis) -> str:
    arms = [result.losslessness for result in one.speculative if result.losslessness]
    known = [found.p_value for found in arms if found.p_value is not None]
    if not known:
        return f"At temperature {one.temperature:g}, too few outputs a prompt for the distribution test."
    tested = "all" if len(known) == len(arms) else f"{len(known)} of"
    return (
        f"At temperature {one.temperature:g}, {tested} {len(arms)} arms pass the test that they follow the "
        f"baseline's distribution (smallest p {min(known):.3f})."
    )


def _batch(analysis: Analysis, kind: str, pays_at: tuple[int, ...]) -> Answer:
    question = "Up to which batch?"
    batches = analysis.batches
    lines = []
    for batch in batches:
        top = analysis.best_at(batch)
        found = top.evidence if top else None
        name = setting(top) if top else f"none at batch {batch}"
        lines.append(f"{name}, {times(found.value if found else None)} ({interval(found)})")
    detail = "Best arms: " + "; ".join(lines) + "."
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


def crossing(points: Iterable[tuple[int, float | None]]) -> float | None:
    """Where a speedup by batch size falls through 1, linear in log2 of the batch size; else None."""
    known = sorted((batch, value) for batch, value in points if value is not None)
    for (left, above), (right, below) in pairwise(known):
        if above > 1 >= below:
            share = (above - 1) / (above - below)
            return 2 ** (math.log2(left) + share * (math.log2(right) - math.log2(left)))
    return None
