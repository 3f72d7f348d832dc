"""The pictures: altair charts from the tidy tables, rendered to SVG without a network.

    figures = draw(tables, context)      # {"speedup": Figure(wide, narrow, alt), ...}

Each figure comes in two widths, one for a phone. Axes of lengths start at zero. Colours are those of a
light page; the page's style sheet and main.svg swap them in the dark (theme.dark_rules).
A figure whose table has nothing to show is absent rather than an empty axis.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

import altair as alt
import pandas as pd
import vl_convert

from stages.reporting import charts, theme

WIDE, NARROW = 700, 340
ZOOM = 1.25  # how far a page may enlarge a figure
VEGALITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


@dataclass(frozen=True)
class Figure:
    wide: str
    narrow: str
    alt: str


def draw(tables: dict[str, pd.DataFrame], context: str) -> dict[str, Figure]:
    """All figures that have data. `context` (device, batch, n) closes every alternative text."""
    first = _first_temperature(tables["speedup"])
    makers: dict[str, tuple[Callable[[pd.DataFrame, int], alt.TopLevelMixin], pd.DataFrame, str]] = {
        "speedup": (charts.speedup, _known(first, "speedup"), _say_speedup(first)),
        "batch": (
            charts.batch,
            _several_batches(first),
            "Speedup of each setting by batch size.",
        ),
        "acceptance": (
            charts.acceptance,
            _known(tables["acceptance"], "acceptance_rate"),
            "Share of drafted tokens accepted, by position in the draft, one panel a setting.",
        ),
        "temperature": (
            charts.temperature,
            _several_temperatures(tables["speedup"]),
            "Speedup of each setting at every temperature. " + _say_temperatures(tables["speedup"]),
        ),
        "step_cost": (
            charts.step_cost,
            tables["step_cost"],
            "Milliseconds a step and a token of each arm, stacked by what they are spent on.",
        ),
        "roofline": (
            charts.roofline,
            _known(tables["time_per_token"], "time_per_token_ms"),
            _say_times(tables["time_per_token"]),
        ),
        "drafted": (
            charts.drafted,
            _known(tables["time_per_token"], "time_per_token_ms"),
            "Time per token against the number of drafted tokens a step, by batch size.",
        ),
    }
    return {
        name: Figure(
            wide=render(make(frame, WIDE), f"{name}-wide"),
            narrow=render(make(frame, NARROW), f"{name}-narrow"),
            alt=f"{text} {context}",
        )
        for name, (make, frame, text) in makers.items()
        if len(frame)
    }


def standalone(figure: Figure, title: str) -> str:
    """An SVG file of the wide form for a README: its own ground, dark where the reader's system is."""
    style = (
        "svg{background:#ffffff}@media(prefers-color-scheme:dark){svg{background:#0f141b}"
        + theme.dark_rules("")
        + "}"
    )
    head = f"<title>{html.escape(title)}</title><style>{style}</style>"
    opened = re.sub(r"<svg [^>]*>", lambda match: match.group(0) + head, figure.wide, count=1)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure.wide).groups()
    return opened.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1) + "\n"


def _known(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    return frame[frame[column].notna()]


def _first_temperature(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["temperature"] == frame["temperature"].iloc[0]] if len(frame) else frame


def _several_temperatures(frame: pd.DataFrame) -> pd.DataFrame:
    known = _known(frame, "speedup")
    return known if known["temperature"].nunique() > 1 else known.iloc[:0]


def _several_batches(frame: pd.DataFrame) -> pd.DataFrame:
    known = _known(frame, "speedup")
    return known if known["max_num_seqs"].nunique() > 1 else known.iloc[:0]


def render(chart: alt.TopLevelMixin, name: str) -> str:
    """Rendered by vl-convert; ids made unique on a page, and free to shrink with it."""
    text = vl_convert.vegalite_to_svg(theme.styled(chart).to_dict(validate=False), vl_version=VEGALITE)
    text = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    size = r'width="([\d.]+)" height="[\d.]+"'
    return re.sub(size, lambda found: f'style="max-width:{float(found[1]) * ZOOM:.0f}px"', text, count=1)


def _say_speedup(frame: pd.DataFrame) -> str:
    parts = [
        f"{row.label} batch {row.max_num_seqs}: {row.speedup:.2f}"
        + (f" ({row.low:.2f} to {row.high:.2f})" if pd.notna(row.low) else "")
        for row in _known(frame, "speedup").itertuples()
    ]
    return "Speedup over the baseline. " + "; ".join(parts) + "."


def _say_temperatures(frame: pd.DataFrame) -> str:
    parts = [
        f"{row.label} batch {row.max_num_seqs} temperature {row.temperature:g}: {row.speedup:.2f}"
        for row in _known(frame, "speedup").itertuples()
    ]
    return "; ".join(parts) + "."


def _say_times(frame: pd.DataFrame) -> str:
    rows = _known(frame, "time_per_token_ms").itertuples()
    parts = [f"{row.label} batch {row.max_num_seqs}: {row.time_per_token_ms:.2f} ms" for row in rows]
    return "Time per token. " + "; ".join(parts) + "."
