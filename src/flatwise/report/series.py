"""What figures of measured networks share: one color for each network, a legend, numbers short enough for a page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flatwise.report.figures import Json
from flatwise.report.palette import COLORS, OTHERS, Style

GREY = "#7d8590"
"""Stands on white as well as on black."""


def styles_of(entries: Sequence[Mapping[str, Any]]) -> list[Style]:
    """The style of each entry: its own, that of the method it names, or else the next color that is free.

    An entry's "style" is a `Style`, or the name of a method such as "eigen-sam". Entries with the same label look alike.
    """
    chosen: dict[str, Style] = {}
    for entry in entries:
        wanted = entry.get("style")
        if entry["label"] not in chosen:
            used = {style.color for style in chosen.values()}
            chosen[entry["label"]] = wanted if isinstance(wanted, Style) else Style(_color(entry, used), "solid")
    return [entry["style"] if isinstance(entry.get("style"), Style) else chosen[entry["label"]] for entry in entries]


def _color(entry: Mapping[str, Any], used: set[str]) -> str:
    names = [str(entry.get("style") or ""), str(entry["label"]).lower().replace(" ", "-")]
    wanted = [COLORS[name] for name in names if name in COLORS]
    free = [color for color in (*wanted, *OTHERS) if color not in used]
    return free[0] if free else OTHERS[len(used) % len(OTHERS)]


def curve(
    label: str, style: Style, xs: Sequence[float], ys: Sequence[float | None], reading: str, *, width: float = 2.0
) -> Json:
    """A line with its name in the legend; `reading` is what the pointer shows, in Plotly's words."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [short(x) for x in xs],
        "y": [short(y) for y in ys],
        "name": html.escape(label),
        "legendgroup": html.escape(label),
        "line": {"color": style.color, "width": width, "dash": style.dash},
        "hovertemplate": reading,
        "meta": label,
    }


def with_legend(layout: Json, several: bool) -> Json:
    """The layout with a legend above the figure, where there is more than one name to tell apart."""
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return layout | {"showlegend": several, "legend": place}


def short(value: float | None) -> float | None:
    """The value with six significant digits; None where it is not finite, as JSON has no such numbers."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def finite(values: Sequence[float | None]) -> list[float]:
    """Those that are finite numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, of at least one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
