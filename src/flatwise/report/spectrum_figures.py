"""Figures of spectra: the density of all eigenvalues, the largest ones by rank and along training."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from flatwise.report.curves import wants_log
from flatwise.report.densities import Density, bulk, density, extremes, resolution
from flatwise.report.figures import Figure, Json, base_layout, padded
from flatwise.report.palette import Style, transparent
from flatwise.report.quantities import compact
from flatwise.report.scales import Linear, SymmetricLog, powers
from flatwise.report.series import GREY, curve, finite, short, styles_of, with_legend

Entry: TypeAlias = Mapping[str, Any]
Horizontal: TypeAlias = Literal["auto", "linear", "symmetric log"]

OUTLYING = 30
"""A linear axis shows bulk and outliers where these are less than so many times as large as the bulk."""

DEEPEST = 1e-5
"""Nothing smaller than this share of the largest eigenvalue is told apart from 0 on a symmetric-log axis."""

MOMENTS = ("#7d8590", "#5b9bd5", "#b98a00", "#b5589b")
"""The steps of a run before its last, which has the color of the run."""

TOGETHER = 4
"""So many densities can be told apart in one frame."""


# --- densities --------------------------------------------------------------------------------------------------------


def density_figures(
    entries: Sequence[Entry], *, horizontal: Horizontal = "auto", together: bool | None = None
) -> list[Figure]:
    """Spectral densities on a logarithmic vertical axis, over one another, or in panels that share their axes.

    Args:
        entries: each with "label", "nodes" and "weights" [random vectors][steps], "size" (the number of eigenvalues), and where
            known "eigenvalues", computed one by one, which are marked below the density. "style" is a `Style` or a method's name.
        horizontal: the scale of the eigenvalues. "symmetric log" is linear around 0 and logarithmic beyond, so that the bulk and
            the outliers are both seen; densities are then shares for a decade. "auto" takes it where outliers dwarf the bulk.
        together: all in one frame, or each in a panel of its own; by default together up to four.

    Raises:
        ValueError: an unknown scale.
    """
    if not entries:
        return []
    low, high = extremes(entries)
    scale = _scale(horizontal, entries, max(abs(low), abs(high)))
    ends = _ends(scale.place(low), scale.place(high))
    parts = [density(entry, scale.place, *ends) for entry in entries]
    drawn = list(zip(entries, styles_of(entries), parts, strict=True))
    floor = min(part.single for part in parts) / 30
    height = max(value for part in parts for value in part.values)
    one_frame = len(entries) <= TOGETHER if together is None else together
    frames = [drawn] if one_frame else [[one] for one in drawn]
    rows = max(len(frame) for frame in frames)
    layout = _density_layout(scale, ends, floor, height, rows)
    figures = [_density_figure(i, frame, scale, layout, floor) for i, frame in enumerate(frames)]
    caption = _density_caption(scale, any(p.errors for p in parts), any(e.get("eigenvalues") for e in entries))
    return [*figures[:-1], replace(figures[-1], caption=caption)]


def _scale(horizontal: Horizontal, entries: Sequence[Entry], reach: float) -> Linear | SymmetricLog:
    if horizontal not in ("auto", "linear", "symmetric log"):
        raise ValueError(f'horizontal must be "auto", "linear" or "symmetric log", got {horizontal!r}')
    size = bulk(entries)
    if horizontal == "linear" or not reach or (horizontal == "auto" and reach < OUTLYING * size):
        return Linear()
    return SymmetricLog(float(f"{max(size / 3, resolution(entries), DEEPEST * reach):.0e}"))


def _ends(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis that shows all eigenvalues and, blurred, a little more."""
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _density_layout(
    scale: Linear | SymmetricLog, ends: tuple[float, float], floor: float, height: float, rows: int
) -> Json:
    """Axes for all frames; below the floor there is room for a row of marks for each network."""
    span = (math.log10(floor) - _row_height(floor, height) * rows, math.log10(height) + 0.35)
    layout = base_layout("eigenvalue", f"share of eigenvalues per {scale.unit}", ends, span, log=True)
    layout["xaxis"] |= scale.axis(*ends)
    layout["yaxis"] |= powers(span)
    layout["shapes"] = [_level(1.0 * scale.place(0.0), "x")]
    return layout | {"hovermode": "closest"}


def _row_height(floor: float, height: float) -> float:
    return 0.07 * (math.log10(height) - math.log10(floor))


def _level(value: float, axis: Literal["x", "y"]) -> Json:
    """A thin line across the frame, at a value of one of the axes."""
    across: Json = {"x0": 0, "x1": 1, "xref": "paper", "y0": value, "y1": value}
    down: Json = {"y0": 0, "y1": 1, "yref": "paper", "x0": value, "x1": value}
    line = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "line", "line": line, "layer": "below"} | (across if axis == "y" else down)


def _density_figure(
    index: int,
    frame: Sequence[tuple[Entry, Style, Density]],
    scale: Linear | SymmetricLog,
    layout: Json,
    floor: float,
) -> Figure:
    alone = len(frame) == 1
    height = max(value for _, _, part in frame for value in part.values)
    traces = [trace for entry, style, part in frame for trace in _density_traces(entry, style, part, floor, alone)]
    row = _row_height(floor, height)
    marks = [_marks(entry, style, scale, floor / 10 ** (row * (i + 0.6))) for i, (entry, style, _) in enumerate(frame)]
    single = min(part.single for _, _, part in frame)
    shapes = [*layout["shapes"], _level(single, "y")]
    layout = with_legend(layout | {"shapes": shapes}, not alone)
    title = str(frame[0][0]["label"]) if alone else "Spectral density"
    return Figure(f"density-{index}", title, "", [*traces, *(m for m in marks if m["x"])], layout)


def _density_traces(entry: Entry, style: Style, part: Density, floor: float, alone: bool) -> list[Json]:
    """The density, and the 95 % band around it."""
    values = [max(value, floor / 1e3) for value in part.values]
    line = curve(entry["label"], style, part.places, values, "%{y:.2g}<extra>%{fullData.name}</extra>")
    if alone:
        line |= {"fill": "tozeroy", "fillcolor": transparent(style.color, 0.12)}
    if not part.errors:
        return [line]
    border: Json = {"type": "scatter", "mode": "lines", "x": line["x"], "line": {"width": 0}, "hoverinfo": "skip"}
    border |= {"showlegend": False, "legendgroup": line["legendgroup"], "meta": line["meta"]}
    low, high = ([short(end) for end in ends] for ends in zip(*map(_interval, values, part.errors)))
    band = border | {"y": high, "fill": "tonexty", "fillcolor": transparent(style.color, 0.18)}
    return [border | {"y": low}, band, line]


def _interval(value: float, error: float) -> tuple[float, float]:
    """About 95 %, on the logarithmic axis: to first order, with ends that stay positive."""
    factor = math.exp(1.96 * min(1.0, error / value))
    return value / factor, value * factor


def _marks(entry: Entry, style: Style, scale: Linear | SymmetricLog, height: float) -> Json:
    """A tick for each eigenvalue that was computed."""
    values = finite(entry.get("eigenvalues") or [])
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [short(scale.place(value)) for value in values],
        "y": [short(height)] * len(values),
        "text": [compact(value) for value in values],
        "name": html.escape(entry["label"]),
        "legendgroup": html.escape(entry["label"]),
        "showlegend": False,
        "hovertemplate": "eigenvalue %{text}<extra>%{fullData.name}</extra>",
        "marker": {"symbol": "line-ns", "size": 7, "line": {"color": style.color, "width": 2}},
        "meta": entry["label"],
    }


def _density_caption(scale: Linear | SymmetricLog, banded: bool, marked: bool) -> str:
    parts = ["Dotted: the height of a single eigenvalue."]
    if isinstance(scale, SymmetricLog):
        parts.insert(0, f"Eigenvalues on an axis that is linear around 0 and logarithmic beyond ±{scale.threshold:g}.")
    if banded:
        parts.append("Shade: 95 % interval over random vectors.")
    if marked:
        parts.append("Ticks below: eigenvalues computed one by one.")
    return " ".join(parts)


# --- the largest eigenvalues ------------------------------------------------------------------------------------------


def spectrum_figures(entries: Sequence[Entry]) -> list[Figure]:
    """The largest eigenvalues by rank, and along training where networks have several steps, with their residuals as bars.

    Args:
        entries: each with "label", "values" (descending) and "residuals", and where known the training "step". Entries with
            the same label are one run at several steps. "style" is a `Style` or a method's name.
    """
    usable = [entry for entry in entries if finite(entry["values"])]
    return [figure for figure in (_by_rank(usable), _along(usable)) if figure.data]


def _by_rank(entries: Sequence[Entry]) -> Figure:
    shown = [(name, style, entry) for name, style, entry in _compared(entries) if len(entry["values"]) > 1]
    traces = [
        _with_bars(name, style, range(1, len(entry["values"]) + 1), entry["values"], entry["residuals"])
        for name, style, entry in shown
    ]
    most = max((len(entry["values"]) for _, _, entry in shown), default=1)
    layout = _layout("rank", (0.6, most + 0.4), [entry for _, _, entry in shown])
    layout["xaxis"] |= {"dtick": max(1, most // 10), "tick0": 1}
    caption = "An eigenvalue of the Hessian lies within each bar, the residual."
    return Figure("spectrum-ranks", "The largest eigenvalues", caption, traces, with_legend(layout, len(traces) > 1))


def _compared(entries: Sequence[Entry]) -> list[tuple[str, Style, Entry]]:
    """Each run at its end; a single one at up to five of its steps."""
    styles = styles_of(entries)
    ends = {entry["label"]: (str(entry["label"]), style, entry) for entry, style in zip(entries, styles)}
    if len(ends) > 1 or len(entries) < 2:
        return list(ends.values())
    last = len(entries) - 1
    places = sorted({round(i * last / 4) for i in range(5)})
    colors = [*MOMENTS[len(MOMENTS) + 1 - len(places) :], styles[-1].color]
    return [(_moment(entries[i]), Style(color, "solid"), entries[i]) for i, color in zip(places, colors, strict=True)]


def _moment(entry: Entry) -> str:
    return str(entry["label"]) if entry.get("step") is None else f"step {entry['step']:,}"


def _along(entries: Sequence[Entry]) -> Figure:
    """The top eigenvalue of each run along its steps; the next ones as thin lines."""
    runs = _runs(entries)
    traces = [trace for name, run in runs.items() for trace in _run_traces(name, run)]
    drawn = [entry for run in runs.values() for entry, _ in run]
    first, last = (end((entry["step"] for entry in drawn), default=0.0) for end in (min, max))
    margin = 0.02 * (last - first)
    layout = with_legend(_layout("training step", (first - margin, last + margin), drawn), len(runs) > 1)
    deep = any(len(entry["values"]) > 1 for entry in drawn)
    caption = "Bars: residuals." + (" Thin: the eigenvalues after the first." if deep else "")
    return Figure("spectrum-steps", "Along training", caption, traces, layout)


def _runs(entries: Sequence[Entry]) -> dict[str, list[tuple[Entry, Style]]]:
    """The entries with a step by their label, in order, where there are at least two."""
    runs: dict[str, list[tuple[Entry, Style]]] = {}
    for entry, style in zip(entries, styles_of(entries), strict=True):
        if entry.get("step") is not None:
            runs.setdefault(str(entry["label"]), []).append((entry, style))
    return {name: sorted(run, key=lambda pair: pair[0]["step"]) for name, run in runs.items() if len(run) > 1}


def _run_traces(name: str, run: Sequence[tuple[Entry, Style]]) -> list[Json]:
    steps, style = [entry["step"] for entry, _ in run], run[-1][1]
    top = _with_bars(name, style, steps, [e["values"][0] for e, _ in run], [e["residuals"][0] for e, _ in run])
    ranks = range(1, max(len(entry["values"]) for entry, _ in run))
    return [*(_next(name, style, run, rank) for rank in ranks), top]


def _next(name: str, style: Style, run: Sequence[tuple[Entry, Style]], rank: int) -> Json:
    values = [entry["values"][rank] if rank < len(entry["values"]) else None for entry, _ in run]
    line = curve(name, style, [entry["step"] for entry, _ in run], values, "", width=1)
    return line | {"showlegend": False, "opacity": 0.45, "hoverinfo": "skip", "hovertemplate": None}


def _with_bars(
    name: str, style: Style, xs: Sequence[float], values: Sequence[float | None], residuals: Sequence[float | None]
) -> Json:
    line = curve(name, style, xs, values, "%{text}", width=1.75)
    bars = {
        "type": "data",
        "array": [short(r) or 0 for r in residuals],
        "color": style.color,
        "thickness": 1.5,
        "width": 4,
    }
    text = [
        f"{compact(v)} ± {compact(r)}" if v is not None and r is not None else "" for v, r in zip(values, residuals)
    ]
    return line | {"mode": "lines+markers", "marker": {"size": 6, "color": style.color}, "error_y": bars, "text": text}


def _layout(title: str, x: tuple[float, float], entries: Sequence[Entry]) -> Json:
    """Axes that hold all eigenvalues and their bars."""
    known = [(v, r or 0.0) for e in entries for v, r in zip(e["values"], e["residuals"], strict=True) if v is not None]
    log = wants_log([v for v, _ in known])
    return base_layout(title, "eigenvalue", x, padded([end for v, r in known for end in (v - r, v + r)], log), log=log)
