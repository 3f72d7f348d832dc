"""One function a chart: a tidy table and a width in pixels to an altair chart. No file, no rendering."""

from __future__ import annotations

import altair as alt
import pandas as pd

from stages.reporting import panels
from stages.reporting.theme import ARM_COLOURS, LABELS, MUTED, PART_COLOURS, RED, RULE, TEXT

PART_WORDS = {
    "target_forward": "target",
    "draft_forward": "draft",
    "verify": "verify",
    "compact": "compact",
    "other": "rest",
}


def speedup(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """Bars from zero with intervals, a line at 1, a diamond for the prediction; lossy arms in red."""
    wide = width > panels.PHONE
    tags = [_speedup_tag(row, wide) for row in frame.itertuples()]
    frame = panels.bounded(frame).assign(tag=tags, lossy=frame["lossless"].map(lambda value: value is False))
    longest = (max(map(len, frame["tag"])) * 8 + 14) / (width - LABELS - 10)  # the words' share of the width
    x = alt.Scale(domain=[0, max(frame["end"].max(), 1.0) * (1 + longest / (1 - longest))], nice=False)

    def panel(part: pd.DataFrame) -> alt.LayerChart:
        y = alt.Y("label:N", sort=list(part["label"]), title=None, axis=panels.name_axis())
        base = alt.Chart(part)
        red = alt.value(RED)
        bars = base.mark_bar(height=15, cornerRadiusEnd=2, fillOpacity=0.85).encode(
            x=alt.X("speedup:Q", scale=x, title="speedup over the baseline" if wide else "speedup"),
            y=y,
            color=alt.condition("datum.lossy", red, panels.arm_colour()),
        )
        one = base.mark_rule(color=RULE, strokeDash=[4, 3]).encode(x=alt.datum(1))
        spans = base.transform_filter("isValid(datum.low)").mark_rule(color=RULE, strokeWidth=2)
        diamond = base.transform_filter("isValid(datum.predicted)").mark_point(
            shape="diamond", size=46, color=RULE, filled=False, strokeWidth=1.5
        )
        tags = base.mark_text(align="left", dx=9, fontSize=13, fontWeight=600)
        return alt.layer(
            bars,
            one,
            spans.encode(x="low:Q", x2="high:Q", y=y),
            diamond.encode(x="predicted:Q", y=y),
            tags.encode(
                x="end:Q", y=y, text="tag:N", color=alt.condition("datum.lossy", red, alt.value(TEXT))
            ),
        )

    return panels.by_batch(frame, panel, width).resolve_scale(x="shared")


def _speedup_tag(row, wide: bool) -> str:
    tag = f"{row.speedup:.2f}×"
    if row.lossless is False:
        return f"{tag} NOT LOSSLESS" if wide else f"{tag} ✗"
    return f"{tag}  ({row.low:.2f} to {row.high:.2f})" if wide and pd.notna(row.low) else tag


def roofline(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """Time per token of every arm; the tick is the floor that memory bandwidth sets without speculation."""
    frame = frame.assign(tag=[f"{value:.2f} ms" for value in frame["time_per_token_ms"]])
    frame["end"] = frame[["time_per_token_ms", "floor_ms"]].astype(float).max(axis=1)
    room = 60 / (width - LABELS - 10)

    def panel(part: pd.DataFrame) -> alt.LayerChart:
        base = alt.Chart(part)
        y = alt.Y("label:N", sort=list(part["label"]), title=None, axis=panels.name_axis())
        x = alt.Scale(domain=[0, part["end"].max() / (1 - room)], nice=False)
        bars = base.mark_bar(height=15, cornerRadiusEnd=2, fillOpacity=0.85)
        floor = base.transform_filter("isValid(datum.floor_ms)").mark_tick(
            color=RULE, thickness=2.5, height=22
        )
        tags = base.mark_text(align="left", dx=6, fontSize=12, color=TEXT)
        return alt.layer(
            bars.encode(
                x=alt.X("time_per_token_ms:Q", scale=x, title="ms per token"), y=y, color=panels.arm_colour()
            ),
            floor.encode(x="floor_ms:Q", y=y),
            tags.encode(x="end:Q", y=y, text="tag:N"),
        )

    return panels.by_batch(frame, panel, width).resolve_scale(x="independent")


def acceptance(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """One panel a setting; bars of one position are its temperatures, else its batch sizes, first darkest."""
    order = list(dict.fromkeys(frame["label"]))
    columns = panels.columns(width, len(order))
    by = "temperature" if frame["temperature"].nunique() > 1 else "max_num_seqs"
    if by == "temperature":  # one batch then: which draft is accepted hardly depends on the batch
        frame = frame[frame["max_num_seqs"] == frame["max_num_seqs"].min()]
    bars = alt.Chart(frame).mark_bar(cornerRadiusEnd=1)
    percents = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
    return bars.encode(
        x=alt.X("position:O", title="position in the draft", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        xOffset=alt.XOffset(f"{by}:O"),
        y=alt.Y("acceptance_rate:Q", title="accepted", scale=alt.Scale(domain=[0, 1]), axis=percents),
        color=panels.arm_colour(),
        opacity=panels.opacity(frame, by),
        facet=alt.Facet("label:N", sort=order, columns=columns, title=None),
    ).properties(width=panels.facet_width(width, columns), height=100)


def temperature(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """Speedup with its interval, one bar a temperature, panels by batch size; the dashed line is no gain."""
    frame = panels.bounded(frame)
    x = alt.Scale(domain=[0, max(frame["end"].max(), 1.0) * 1.08], nice=False)
    count = frame["temperature"].nunique()

    def panel(part: pd.DataFrame) -> alt.LayerChart:
        y = alt.Y("label:N", sort=list(dict.fromkeys(part["label"])), title=None, axis=panels.name_axis())
        offset = alt.YOffset("temperature:O")
        base = alt.Chart(part)
        bars = base.mark_bar(cornerRadiusEnd=2).encode(
            x=alt.X("speedup:Q", scale=x, title="speedup"),
            y=y,
            yOffset=offset,
            color=panels.arm_colour(),
            opacity=panels.opacity(frame, "temperature"),
        )
        spans = base.transform_filter("isValid(datum.low)").mark_rule(color=RULE, strokeWidth=2)
        one = base.mark_rule(color=RULE, strokeDash=[4, 3]).encode(x=alt.datum(1))
        return alt.layer(bars, one, spans.encode(x="low:Q", x2="high:Q", y=y, yOffset=offset))

    return panels.by_batch(frame, panel, width, row=14 * count + 12).resolve_scale(x="shared")


def batch(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """Speedup against the batch size, one panel a setting, all with one axis from zero."""
    frame = panels.bounded(frame).assign(one=1.0)
    order = list(dict.fromkeys(frame["label"]))
    columns = panels.columns(width, len(order))
    x = alt.X("max_num_seqs:O", title="max_num_seqs", axis=alt.Axis(labelAngle=0))
    scale = alt.Scale(domain=[0, max(frame["end"].max(), 1.0) * 1.08], nice=False)
    base = alt.Chart()
    line = base.mark_line(point={"size": 50, "filled": True}).encode(
        x=x, y=alt.Y("speedup:Q", scale=scale, title="speedup"), color=panels.arm_colour()
    )
    spans = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    spans = spans.encode(x=x, y="low:Q", y2="high:Q", color=panels.arm_colour())
    one = base.mark_rule(color=RULE, strokeDash=[4, 3]).encode(y="one:Q")
    layers = alt.layer(one, spans, line, data=frame).properties(
        width=panels.facet_width(width, columns), height=110
    )
    return layers.facet(facet=alt.Facet("label:N", sort=order, title=None), columns=columns)


def drafted(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """Time per token against the tokens drafted a step; 0 is the baseline, whose time the line keeps."""
    columns = panels.columns(width, frame["max_num_seqs"].nunique())
    plain = frame[frame["arm"] == "baseline"].set_index("max_num_seqs")["time_per_token_ms"]
    frame = frame.assign(
        baseline_ms=frame["max_num_seqs"].map(plain), batch=frame["max_num_seqs"].map("batch {}".format)
    )
    base = alt.Chart()
    x = alt.X("drafted_tokens:Q", title="drafted a step", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("time_per_token_ms:Q", title="ms per token", scale=alt.Scale(zero=True))
    line = (
        base.transform_filter("datum.arm == 'chain'")
        .mark_line(strokeWidth=1.5)
        .encode(x=x, y=y, color=panels.arm_colour())
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x, y=y, color=panels.arm_colour(), shape=alt.Shape("arm:N", scale=SHAPES, legend=None)
    )
    level = base.transform_filter("isValid(datum.baseline_ms)").mark_rule(color=MUTED, strokeDash=[4, 3])
    layers = alt.layer(level.encode(y="mean(baseline_ms):Q"), line, points, data=frame)
    layers = layers.properties(width=panels.facet_width(width, columns, 50), height=150)
    sort = [f"batch {value}" for value in sorted(frame["max_num_seqs"].unique())]
    return layers.facet(facet=alt.Facet("batch:N", sort=sort, title=None), columns=columns).resolve_scale(
        y="independent"
    )


SHAPES = alt.Scale(domain=list(ARM_COLOURS), range=["circle", "square", "triangle-up"])


def step_cost(frame: pd.DataFrame, width: int) -> alt.TopLevelMixin:
    """Stacked parts of a step and of a token; side by side on a wide page, one above the other on a phone."""
    words = [PART_WORDS[part] for part in PART_COLOURS]
    order = {part: place for place, part in enumerate(PART_COLOURS)}
    frame = frame.assign(what=frame["part"].map(PART_WORDS), place=frame["part"].map(order))
    wide = width > panels.PHONE
    colour = alt.Color(
        "what:N",
        scale=alt.Scale(domain=words, range=list(PART_COLOURS.values())),
        legend=alt.Legend(columns=5 if wide else 3, symbolFillColor=alt.Undefined),
    )
    plot = (width - LABELS - 30) // 2 if wide else width - LABELS - 10

    def stack(part: pd.DataFrame, field: str, title: str, axis: alt.Axis | None) -> alt.Chart:
        rows = list(dict.fromkeys(part["label"]))
        return (
            alt.Chart(part)
            .mark_bar(height=15)
            .encode(
                x=alt.X(f"{field}:Q", title=title, stack="zero"),
                y=alt.Y("label:N", sort=rows, title=None, axis=axis),
                color=colour,
                order="place:Q",
            )
            .properties(width=plot, height=panels.ROW * len(rows))
        )

    def panel(part: pd.DataFrame) -> alt.TopLevelMixin:
        step = stack(part, "ms_per_step", "ms per step", panels.name_axis())
        token = stack(part, "ms_per_token", "ms per token", None if wide else panels.name_axis())
        return alt.hconcat(step, token) if wide else alt.vconcat(step, token)

    return panels.by_batch(frame, panel, None)
