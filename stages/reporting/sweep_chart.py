"""The picture of a sweep: time per token against k and against nodes, with intervals.

svg = draw_sweep(sweep.table(), "2 cores, 20 prompts, one at a time")
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from stages.reporting.figures import Figure, render, standalone
from stages.reporting.sweep import is_chosen
from stages.reporting.theme import ARM_COLOURS, RULE, TEXT

WIDTH, HEIGHT = 320, 220
TITLE = "Time per token by k and by nodes"


def draw_sweep(table: pd.DataFrame, context: str) -> str:
    """An SVG that stands alone: chains left, trees right, dashed the time without speculation."""
    table = table.assign(chosen=table["mode"].map(is_chosen))
    # What stands at its own number needs no name.
    table["name"] = table["mode"].str.replace(r"^(chain-k|tree-)(grown_)?(\d+$)?", "", regex=True)
    top = table["time_per_token_ms_high"].fillna(table["time_per_token_ms"]).max() * 1.05
    plain = table.loc[table["kind"] == "baseline", "time_per_token_ms"].iloc[0]
    panels = [
        _panel(table[table["kind"] == kind], kind, title, plain, alt.Scale(domain=[0, top], nice=False))
        for kind, title in (("chain", "k of the chain"), ("tree", "nodes of the tree"))
    ]
    chart = alt.hconcat(*panels).properties(title=f"Milliseconds a token; {context}")
    return standalone(Figure(render(chart, "sweep"), "", TITLE), TITLE)


def _panel(rows: pd.DataFrame, kind: str, title: str, plain: float, y: alt.Scale) -> alt.LayerChart:
    """Filled points are fixed settings, rings what the calibration chose."""
    base = alt.Chart(rows)
    x = alt.X("nodes:Q", title=title, scale=alt.Scale(type="log", base=2, nice=False, padding=12))
    colour = alt.value(ARM_COLOURS[kind])
    ms = alt.Y("time_per_token_ms:Q", scale=y, title="ms a token")
    points = base.mark_point(size=60).encode(
        x=x, y=ms, color=colour, fill=alt.condition("datum.chosen", alt.value("transparent"), colour)
    )
    spans = base.mark_rule().encode(
        x=x, y="time_per_token_ms_low:Q", y2="time_per_token_ms_high:Q", color=colour
    )
    fixed = base.transform_filter("!datum.chosen").mark_text(dy=-10, fontSize=10, color=TEXT)
    chosen = base.transform_filter("datum.chosen").mark_text(
        dy=12, fontSize=10, color=TEXT
    )  # may be the same
    labels = [
        fixed.encode(x=x, y="time_per_token_ms_high:Q", text="name:N"),
        chosen.encode(x=x, y="time_per_token_ms_low:Q", text="name:N"),
    ]
    undrafted = base.mark_rule(color=RULE, strokeDash=[4, 3]).encode(y=alt.datum(plain))
    return alt.layer(undrafted, spans, points, *labels).properties(width=WIDTH, height=HEIGHT)
