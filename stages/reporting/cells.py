"""A table of the report as cells: a text, a value to sort by, a tone. HTML and Markdown share them."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.reporting.analysis import Analysis
from stages.reporting.arm_result import ArmResult
from stages.reporting.statistics import Ratio
from stages.reporting.words import interval, lossless_words, percent, times


@dataclass(frozen=True)
class Column:
    title: str
    is_text: bool = False


@dataclass(frozen=True)
class Cell:
    """`value` is what a sort compares; '' sorts last."""

    text: str
    value: float | str = ""
    tone: str = ""
    small: str = ""


@dataclass(frozen=True)
class Row:
    cells: list[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)


def columns(*titles: str) -> list[Column]:
    """A title that ends in '=' is of a column of words."""
    return [Column(title.removesuffix("="), title.endswith("=")) for title in titles]


def number(value: float | None, form: str = "{:.2f}", small: str = "", tone: str = "") -> Cell:
    return Cell("–", "") if value is None else Cell(form.format(value), value, tone, small)


def share(value: float | None, small: str = "", tone: str = "") -> Cell:
    return Cell(percent(value), "" if value is None else value, tone, small)


def named(result: ArmResult) -> list[Cell]:
    return [
        Cell(result.name.label, result.name.label),
        Cell(str(result.name.max_num_seqs), result.name.max_num_seqs),
    ]


def ordered(analysis: Analysis) -> list[ArmResult]:
    return sorted(analysis.results.values(), key=lambda result: result.name.max_num_seqs)


def mark(result: ArmResult, best: ArmResult | None) -> str:
    if not result.may_win:
        return "changed"
    return "best" if result is best else ""


def ratio(ratio: Ratio | None, tone: str = "") -> Cell:
    if ratio is None or ratio.value is None:
        return Cell("–", "")
    return Cell(times(ratio.value), ratio.value, tone, interval(ratio) if ratio.has_interval else "")


def output(result: ArmResult) -> Cell:
    words = lossless_words(result)
    tone = {True: "good", False: "bad", None: ""}[result.lossless]
    if result.changed_elsewhere:
        return Cell(words, words, "bad", "NOT LOSSLESS at another temperature")
    return Cell(words, words, tone)
