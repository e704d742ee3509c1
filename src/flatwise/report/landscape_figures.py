"""Figures of loss landscapes: slices along one direction over one another, planes as contours."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from flatwise.report.figures import Figure, Json, base_layout
from flatwise.report.levels import Levels, levels
from flatwise.report.palette import Style
from flatwise.report.quantities import MISSING, compact
from flatwise.report.series import curve, finite, short, styles_of, with_legend

Entry: TypeAlias = Mapping[str, Any]

COLORS = "Viridis"
"""Ordered for every kind of color vision, and in grey."""

POSITION = "position on the straight line between both"

TRUE_TO_SCALE = {"xaxis": {"constrain": "domain"}, "yaxis": {"constrain": "domain", "scaleanchor": "x"}}
"""A unit of one axis is as long as one of the other."""

BUFFERS = {
    "interpolated": "Statistics of BatchNorm are interpolated: in between they belong to no network.",
    "recomputed": "Statistics of BatchNorm are recomputed at each point.",
}


def landscape_figures(entries: Sequence[Entry]) -> list[Figure]:
    """Lines of the same direction over one another in one figure, each plane in one of its own.

    Planes with the same directions share their colors. Where losses differ by much, axis and colors are logarithmic, and
    they end where walls would leave no room for the valley.

    Args:
        entries: each `to_dict()` of a `Line` or `Plane`, with a "label"; "style" is a `Style` or a method's name.
    """
    styled = list(zip(entries, styles_of(entries), strict=True))
    lines, planes = (
        _grouped([(e, s) for e, s in styled if ("lengths" in e) == on_a_line]) for on_a_line in (True, False)
    )
    figures = [_line_figure(i, group) for i, group in enumerate(lines)]
    return figures + [figure for i, group in enumerate(planes) for figure in _plane_figures(i, [e for e, _ in group])]


def _grouped(styled: Sequence[tuple[Entry, Style]]) -> list[list[tuple[Entry, Style]]]:
    """Those of one kind with the same directions, in order of appearance."""
    groups: dict[Any, list[tuple[Entry, Style]]] = {}
    for entry, style in styled:
        directions = entry["name"] if "name" in entry else tuple(entry["names"])
        groups.setdefault((entry["kind"], directions), []).append((entry, style))
    return list(groups.values())


# --- lines ------------------------------------------------------------------------------------------------------------


def _line_figure(index: int, group: Sequence[tuple[Entry, Style]]) -> Figure:
    entries = [entry for entry, _ in group]
    first, scale = entries[0], levels(finite([loss for entry in entries for loss in _heights(entry)]))
    xs = [x for entry in entries for x in entry["lengths"]]
    x_title = POSITION if first["kind"] == "path" else _along(first["name"], max(entry["norm"] for entry in entries))
    layout: Json = base_layout(x_title, "loss", (min(xs), max(xs)), scale.axis(), log=scale.log) | {
        "hovermode": "closest"
    }
    if first["kind"] == "path":
        layout["xaxis"] |= {"tickvals": [0, 1], "ticktext": [html.escape(mark["label"]) for mark in first["marks"]]}
    traces = [trace for entry, style in group for trace in _line_traces(entry, style, scale)]
    title = f"Loss {'' if first['kind'] == 'path' else 'along '}{first['name']}"
    layout = with_legend(layout, len(group) > 1)
    return Figure(f"landscape-line-{index}", title, _line_caption(entries, scale), traces, layout)


def _heights(entry: Entry) -> list[float | None]:
    """All losses of a line, and those of its marks."""
    return [*entry["losses"], *(mark["loss"] for mark in entry["marks"])]


def _line_traces(entry: Entry, style: Style, scale: Levels) -> list[Json]:
    reading = "%{x:.3g}: loss %{y:.4g}<extra>%{fullData.name}</extra>"
    losses = [None if scale.place(loss) is None else loss for loss in entry["losses"]]
    line = curve(entry["label"], style, entry["lengths"], losses, reading)
    if entry["kind"] == "path":
        return [line, _ends(entry, line)]
    return [*_parabola(entry, line, scale), line]


def _ends(entry: Entry, line: Json) -> Json:
    """The checkpoints themselves, with the buffers they were saved with."""
    marks = entry["marks"]
    return line | {
        "mode": "markers",
        "x": [mark["place"][0] for mark in marks],
        "y": [short(mark["loss"]) for mark in marks],
        "text": [html.escape(mark["label"]) for mark in marks],
        "hovertemplate": "%{text} itself: loss %{y:.4g}<extra>%{fullData.name}</extra>",
        "showlegend": False,
        "marker": {"size": 8, "color": line["line"]["color"], "symbol": "circle-open", "line": {"width": 2}},
    }


def _parabola(entry: Entry, line: Json, scale: Levels) -> list[Json]:
    """The parabola at 0, as far as it is in the frame."""
    found, xs = entry.get("parabola"), entry["lengths"]
    if not found:
        return []
    places = [xs[0] + (xs[-1] - xs[0]) * i / 120 for i in range(121)]
    heights = [found["value"] + found["slope"] * x + found["curvature"] * x * x / 2 for x in places]
    inside = [short(y) if scale.holds(y) else None for y in heights]
    thin = {"color": line["line"]["color"], "width": 1.25, "dash": "dash"}
    return [
        line | {"x": [short(x) for x in places], "y": inside, "line": thin, "hoverinfo": "skip", "showlegend": False}
    ]


def _line_caption(entries: Sequence[Entry], scale: Levels) -> str:
    parts = [scale.words("axis")]
    touching = [entry for entry in entries if entry.get("parabola")]
    if touching:
        numbers = _listed(touching, [_curvature(entry) for entry in touching])
        parts.append(f"Dashed: the parabola by differences of the losses next to 0; its curvature: {numbers}.")
    if entries[0]["kind"] == "path":
        heights = _listed(entries, [_barrier(entry) for entry in entries])
        parts.append(f"Circles: the checkpoints as they were saved. Barrier: {heights}.")
    return " ".join(filter(None, [*parts, _buffers(entries)]))


def _listed(entries: Sequence[Entry], texts: Sequence[str]) -> str:
    """A text for each entry, with its label where there are several."""
    return ", ".join(f"{e['label']} {text}" for e, text in zip(entries, texts)) if len(entries) > 1 else texts[0]


def _curvature(entry: Entry) -> str:
    """The second derivative along the unit direction, with what lengths further apart say otherwise."""
    value, error = (entry["parabola"].get(name) for name in ("curvature", "error"))
    square = entry["norm"] ** 2
    return compact(value / square) + (f" ± {compact(error / square)}" if error and error > 0.01 * abs(value) else "")


def _barrier(entry: Entry) -> str:
    return MISSING if entry.get("barrier") is None else compact(entry["barrier"])


def _buffers(entries: Sequence[Entry]) -> str:
    return " ".join(dict.fromkeys(BUFFERS[e["buffers"]] for e in entries if e["buffers"] in BUFFERS))


# --- planes -----------------------------------------------------------------------------------------------------------


def _plane_figures(index: int, entries: Sequence[Entry]) -> list[Figure]:
    losses = [loss for entry in entries for row in entry["losses"] for loss in row]
    scale = levels(finite(losses))
    return [_plane_figure(f"landscape-plane-{index}-{i}", entry, scale) for i, entry in enumerate(entries)]


def _plane_figure(name: str, entry: Entry, scale: Levels) -> Figure:
    xs, ys = entry["xs"], entry["ys"]
    through_three = entry["kind"] == "plane through three"
    x_title, y_title = ("distance",) * 2 if through_three else map(_along, entry["names"], entry["norms"])
    layout: Json = base_layout(x_title, y_title, (xs[0], xs[-1]), (ys[0], ys[-1]), log=False) | {"hovermode": "closest"}
    if through_three:
        layout |= {key: layout[key] | extra for key, extra in TRUE_TO_SCALE.items()}
        layout["annotations"] = [_named(mark) for mark in entry["marks"]]
    caption = _plane_caption(entry, scale)
    return Figure(name, str(entry["label"]), caption, [_contours(entry, scale), _marks(entry)], layout)


def _along(name: str, norm: float) -> str:
    """The title of an axis: distances along unit vectors, otherwise multiples."""
    return f"{'distance' if abs(norm - 1) < 1e-3 else 'multiples'} along {name}"


def _contours(entry: Entry, scale: Levels) -> Json:
    rows: list[list[float | None]] = entry["losses"]
    low, high = scale.span
    return {
        "type": "contour",
        "x": [short(x) for x in entry["xs"]],
        "y": [short(y) for y in entry["ys"]],
        "z": [[short(scale.place(loss)) for loss in row] for row in rows],
        "text": [[_written(loss) for loss in row] for row in rows],
        "hovertemplate": "%{x:.3g}, %{y:.3g}: loss %{text}<extra></extra>",
        "zmin": low,
        "zmax": high,
        "colorscale": COLORS,
        "contours": {"coloring": "heatmap", "start": low, "end": high, "size": (high - low) / 16},
        "line": {"width": 0.7, "color": "rgba(255,255,255,0.5)"},
        "colorbar": {"thickness": 12, "outlinewidth": 0, "title": {"text": "loss"}} | scale.ticks(),
        "meta": entry["label"],
    }


def _marks(entry: Entry) -> Json:
    marks = entry["marks"]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [short(mark["place"][0]) for mark in marks],
        "y": [short(mark["place"][1]) for mark in marks],
        "text": [f"{html.escape(mark['label'])}: loss {_written(mark['loss'])}" for mark in marks],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "circle", "size": 8, "color": "#ffffff", "line": {"color": "#000000", "width": 1.5}},
        "meta": entry["label"],
    }


def _written(loss: float | None) -> str:
    return "not finite" if loss is None else compact(loss)


def _named(mark: Mapping[str, Any]) -> Json:
    place = {"x": mark["place"][0], "y": mark["place"][1], "yshift": 15, "showarrow": False}
    return place | {
        "text": html.escape(mark["label"]),
        "font": {"color": "#ffffff", "size": 12},
        "bgcolor": "rgba(0,0,0,0.55)",
        "borderpad": 2,
    }


def _plane_caption(entry: Entry, scale: Levels) -> str:
    values = [loss for row in entry["losses"] for loss in row]
    parts = [scale.words("colors")]
    if len(finite(values)) < len(values):
        parts.append("Left empty: the loss is not finite.")
    if abs(entry["cosine"]) > 0.05:
        parts.append(f"The directions are not orthogonal (cosine {entry['cosine']:.2f}), so the picture is sheared.")
    if entry["kind"] == "plane through three":
        parts.append("Distances between weights, true to scale.")
    return " ".join(filter(None, [*parts, _buffers([entry])]))
