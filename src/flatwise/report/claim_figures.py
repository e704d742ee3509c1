"""The figures of a claim: what its `claim.json` says is to be drawn, as Plotly structures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import cast

from flatwise.report.figures import Figure, Json
from flatwise.report.palette import OTHERS, transparent

LEGEND = {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
LINES = tuple(dict.fromkeys(("#2a7fc9", "#d95f0e", "#12967a", *OTHERS)))
LEVEL = {"color": "#808890", "width": 1.25, "dash": "dash"}
AROUND = [[0.0, "#2a7fc9"], [0.5, "#f4f4f4"], [1.0, "#d95f0e"]]
"""Colors below, at and above the middle of a heat map."""
STYLES: dict[str, Json] = {
    "line": {"mode": "lines"},
    "dashed": {"mode": "lines"},
    "points": {"mode": "markers", "marker": {"size": 7}},
}


def claim_figures(claim: Json) -> list[Figure]:
    """The panels and heat maps of a claim, in its order. A curve has the same color in every panel."""
    panels = cast("list[Json]", claim["panels"])
    labels = dict.fromkeys(line["label"] for panel in panels for line in panel.get("lines", []))
    colors = {label: LINES[i % len(LINES)] for i, label in enumerate(labels)}
    return [_figure(f"{claim['name']}-{i}", panel, colors) for i, panel in enumerate(panels)]


def _figure(name: str, panel: Json, colors: Mapping[str, str]) -> Figure:
    return _heat(name, panel) if "values" in panel else _curves(name, panel, colors)


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(name: str, panel: Json, colors: Mapping[str, str]) -> Figure:
    data = [trace for line in panel["lines"] for trace in _line(line, colors[line["label"]])]
    levels = panel.get("levels", {})
    data += [_level(label, height, panel["lines"]) for label, height in levels.items()]
    layout: Json = {"xaxis": _axis(panel, "x"), "yaxis": _axis(panel, "y"), "legend": LEGEND}
    layout["showlegend"] = len(panel["lines"]) + len(levels) > 1
    return Figure(name, panel["title"], "", data, layout)


def _axis(panel: Json, axis: str) -> Json:
    log = axis in panel["log"]
    # With more ticks all digits from 1 to 9 would be labelled over one or two decades, on top of each other.
    ticks: Json = {"type": "log", "tickformat": "~g", "nticks": 5} if log else {"type": "linear"}
    return {"title": {"text": escape(panel[axis])}, "zeroline": False} | ticks


def _line(line: Json, color: str) -> list[Json]:
    """The band, if there is one, and the curve."""
    dash = "dash" if line.get("style") == "dashed" else "solid"
    main: Json = {"x": line["x"], "y": _finite(line["y"]), "name": escape(line["label"]), "type": "scatter"}
    main |= STYLES[line.get("style", "line")] | {"line": {"color": color, "width": 2, "dash": dash}}
    if main["mode"] == "markers":
        main["marker"] = main["marker"] | {"color": color}
    return [*_band(line, color), main]


def _band(line: Json, color: str) -> list[Json]:
    """Filled between its borders; as bars where the curve is points."""
    if not line["low"]:
        return []
    if line.get("style") == "points":
        return _bars(line, color)
    xs, borders = line["x"], (_finite(line["low"]), _finite(line["high"]))
    edge: Json = {"x": xs, "type": "scatter", "mode": "lines", "line": {"width": 0, "color": color}}
    edge |= {"hoverinfo": "skip", "showlegend": False, "name": escape(line["label"])}
    fill = {"fill": "tonexty", "fillcolor": transparent(color, 0.2)}
    return [edge | {"y": borders[0]}, edge | {"y": borders[1]} | fill]


def _bars(line: Json, color: str) -> list[Json]:
    """A line from the lower to the upper end at each point."""
    ends = zip(line["x"], _finite(line["low"]), _finite(line["high"]))
    drawn = [(x, y) for x, low, high in ends for y in (low, high, None)]
    bar: Json = {"x": [x for x, _ in drawn], "y": [y for _, y in drawn], "type": "scatter", "mode": "lines"}
    return [
        bar
        | {
            "line": {"color": color, "width": 1.5},
            "hoverinfo": "skip",
            "showlegend": False,
            "name": escape(line["label"]),
        }
    ]


def _level(label: str, height: float, lines: Sequence[Json]) -> Json:
    """A horizontal line as far as the curves go."""
    xs = [x for line in lines for x in line["x"]]
    ends = [min(xs), max(xs)] if xs else [0.0, 1.0]
    return {"x": ends, "y": [height, height], "name": escape(label), "type": "scatter", "mode": "lines", "line": LEVEL}


# --- heat maps --------------------------------------------------------------------------------------------------------


def _heat(name: str, heat: Json) -> Figure:
    data: Json = {"type": "heatmap", "x": _names(heat["columns"]), "y": _names(heat["rows"])}
    data |= {"z": [_finite(row) for row in heat["values"]], "texttemplate": "%{z:.3g}", "hoverongaps": False}
    data |= {
        "colorbar": {"title": {"text": escape(heat["color"]), "side": "right"}, "outlinewidth": 0, "thickness": 14}
    }
    middle = heat.get("middle")
    data |= {"colorscale": "Viridis"} if middle is None else {"colorscale": AROUND, "zmid": middle}
    axes = {
        f"{axis}axis": {"title": {"text": escape(heat[axis])}, "type": "category", "automargin": True} for axis in "xy"
    }
    return Figure(name, heat["title"], "", [data], axes | {"showlegend": False})


def _names(places: Sequence[float | str]) -> list[str]:
    return [escape(place) if isinstance(place, str) else f"{place:g}" for place in places]


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """What cannot be drawn leaves a gap."""
    return [value if value is not None and math.isfinite(value) else None for value in values]
