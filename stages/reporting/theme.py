"""Colours and type of the charts, on a light ground, and how a page turns them dark.

An SVG holds plain hexadecimal colours, so it stands alone; where a reader's system is dark, CSS swaps each
for its twin in DARK by the attribute's value. Hence every colour below has one meaning only.
"""

from __future__ import annotations

import altair as alt

TEXT, MUTED, GRID, RULE, RED = "#1f2933", "#566270", "#e3e7ec", "#101820", "#c81e1e"
ARM_COLOURS = {"baseline": "#6b7480", "chain": "#1f5fd0", "tree": "#d4570a"}
PART_COLOURS = {
    "target_forward": "#1d4e89",
    "draft_forward": "#f0a030",
    "verify": "#2a9d6f",
    "compact": "#a455b4",
    "other": "#98a2ad",
}
LABELS = 140  # pixels kept for the names of arms
DARK = {
    TEXT: "#e5e7eb",
    MUTED: "#a3acb9",
    GRID: "#333c4a",
    RULE: "#f9fafb",
    RED: "#f87171",
    ARM_COLOURS["baseline"]: "#949eac",
    ARM_COLOURS["chain"]: "#5b9bff",
    ARM_COLOURS["tree"]: "#fb923c",
    PART_COLOURS["target_forward"]: "#6ea8e0",
    PART_COLOURS["draft_forward"]: "#f7bd62",
    PART_COLOURS["verify"]: "#4cc38f",
    PART_COLOURS["compact"]: "#c98ad6",
    PART_COLOURS["other"]: "#7d8794",
}


def styled(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    font = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
    axis = {
        "labelColor": TEXT,
        "titleColor": MUTED,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
    }
    axis |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelFlush": False}
    legend = {"labelColor": TEXT, "titleColor": MUTED, "labelFontSize": 12, "orient": "top", "title": None}
    return (
        chart.configure(font=font, background="transparent", padding=4)
        .configure_view(stroke=None)
        .configure_axis(labelLimit=LABELS - 12, tickCount=5, **axis)
        .configure_title(color=MUTED, fontSize=12, fontWeight=600, anchor="start", frame="group")
        .configure_header(labelColor=TEXT, labelFontSize=12, labelFontWeight=600, labelLimit=160, title=None)
        .configure_legend(symbolSize=110, symbolFillColor=MUTED, columnPadding=14, **legend)
    )


def dark_rules(scope: str) -> str:
    """CSS that swaps every colour of the charts for its dark twin below the selector `scope`."""
    return "".join(
        f'{scope} [fill="{light}"]{{fill:{dark}}}{scope} [stroke="{light}"]{{stroke:{dark}}}'
        for light, dark in DARK.items()
    )
