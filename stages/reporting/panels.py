"""What the charts share: panels by batch size, widths, the axis of names, colours and shades."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import pandas as pd

from stages.reporting.theme import ARM_COLOURS, LABELS

ARM_SCALE = alt.Scale(domain=list(ARM_COLOURS), range=list(ARM_COLOURS.values()))
ROW = 26  # pixels a bar and its gap take
PHONE = 400  # widths below are for a phone


def by_batch(
    frame: pd.DataFrame,
    panel: Callable[[pd.DataFrame], alt.TopLevelMixin],
    width: int | None,
    row: int = ROW,
) -> alt.VConcatChart:
    """One panel a batch size, below each other, with the batch size as its title; sized here if `width`."""
    stacked = []
    for size, part in frame.groupby("max_num_seqs", sort=True):
        chart = panel(part)
        if width is not None:
            chart = chart.properties(width=width - LABELS - 10, height=row * part["label"].nunique())
        stacked.append(chart.properties(title=f"batch {size} (max_num_seqs)"))
    return alt.vconcat(*stacked, spacing=14)


def bounded(frame: pd.DataFrame) -> pd.DataFrame:
    """`high` cut where it would dwarf the estimates, which few engines on an unsteady machine make it do, and
    `end`, the last thing that a row draws. Words and tables keep the whole interval."""
    values = ["speedup", "predicted"]
    limit = 2.5 * max(float(frame[values].astype(float).max(axis=None)), 1.0)
    high = frame["high"].astype(float).clip(upper=limit)
    return frame.assign(high=high, end=frame[values].astype(float).assign(high=high).max(axis=1))


def arm_colour() -> alt.Color:
    return alt.Color("arm:N", scale=ARM_SCALE, legend=None)


def opacity(frame: pd.DataFrame, by: str) -> alt.Opacity | alt.OpacityValue:
    """From dark to light by the values of one column."""
    values = sorted(frame[by].unique().tolist())
    if len(values) == 1:  # a scale of one value has no slope
        return alt.value(1)
    steps = [1 - 0.6 * place / (len(values) - 1) for place in range(len(values))]
    scale = alt.Scale(domain=values, range=steps)
    title = "temperature" if by == "temperature" else "batch"
    return alt.Opacity(f"{by}:O", scale=scale, legend=alt.Legend(title=title, orient="top"))


def columns(width: int, panels: int) -> int:
    return max(1, min(panels, 4 if width > PHONE else 2))


def facet_width(width: int, columns: int, gap: int = 22) -> int:
    """Of one panel: the axis takes 50 pixels once, gaps the rest."""
    return min((width - 50) // columns - gap, 260)


def name_axis() -> alt.Axis:
    return alt.Axis(domain=False, ticks=False, labelPadding=8, minExtent=LABELS - 12, maxExtent=LABELS - 12)
