"""The figures as plain Plotly structures: drawn by plotly.js in the page, so that nothing is rendered here."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flatwise.report.crowds import prominent
from flatwise.report.curves import Curve, Point, axis_of, curves, wants_log
from flatwise.report.palette import Style, transparent
from flatwise.report.quantities import compact
from flatwise.report.study import Study

Json: TypeAlias = dict[str, Any]
Bounds: TypeAlias = tuple[float, float]
OPEN = (-math.inf, math.inf)
PERCENT = (-math.inf, 101.0)  # a little more than can be, so that a line at the border is seen whole
SHARE = (0.0, 1.01)
AXIS_TITLES = {"epoch": "epoch", "step": "training step"}
LABEL_GAP = 0.062  # of the height of a figure: two labels closer than that would touch


@dataclass(frozen=True)
class Figure:
    """A figure of the page: a title, a caption that may be empty, and Plotly's data and layout."""

    name: str
    title: str
    caption: str
    data: Sequence[Json]
    layout: Json

    @property
    def plot(self) -> Json:
        """What plotly.js needs."""
        return {"data": self.data, "layout": self.layout}


@dataclass(frozen=True)
class Line:
    """A curve and how it is drawn; `label` stands at its end."""

    curve: Curve
    style: Style
    label: str
    factor: float = 1.0


def training_figures(study: Study, styles: Mapping[str, Style]) -> list[Figure]:
    """Test accuracy, top eigenvalue, alignments and training loss over training, as far as they were measured."""
    makers = (_accuracy, _eigenvalue, _alignment, _loss)
    return [figure for figure in (make(study, styles) for make in makers) if figure.data]


def loss_figure(study: Study, styles: Mapping[str, Style]) -> list[Figure]:
    """The training loss alone."""
    return [figure for figure in [_loss(study, styles)] if figure.data]


def _accuracy(study: Study, styles: Mapping[str, Style]) -> Figure:
    lines = _lines(study, styles, "test_accuracy", factor=100.0)
    window = _late_window(_shown(study, lines))
    caption = "The first probes lie below the frame; double-click for all of them." if window else ""
    return _figure(
        "accuracy", "Test accuracy", caption, study, lines, "test accuracy (%)", window=window, bounds=PERCENT
    )


def _eigenvalue(study: Study, styles: Mapping[str, Style]) -> Figure:
    log = _wants_log(study, "top_eigenvalue")
    lines = _lines(study, styles, "top_eigenvalue", log=log)
    return _figure(
        "eigenvalue", "Top eigenvalue of the Hessian", _log_caption(study, log), study, lines, "top eigenvalue", log
    )


def _alignment(study: Study, styles: Mapping[str, Style]) -> Figure:
    lines = _lines(study, styles, "alignment_displacement")
    tracked = curves(study.arms, "alignment_tracked", axis_of(study))
    lines += [Line(c, Style(styles[c.arm.name].color, "dot"), f"{c.arm.label}, tracked") for c in tracked]
    caption = (
        "|cos| of the last displacement with the top eigenvector v₁; dotted: of the vector that the method tracks."
    )
    caption = caption if tracked else caption.split(";")[0] + "."
    return _figure(
        "alignment", "Alignment with the top eigenvector", caption, study, lines, "|cos| with v₁", bounds=SHARE
    )


def _loss(study: Study, styles: Mapping[str, Style]) -> Figure:
    log = _wants_log(study, "train_loss")
    lines = _lines(study, styles, "train_loss", log=log)
    return _figure("loss", "Training loss", _log_caption(study, log), study, lines, "training loss", log)


def _lines(
    study: Study, styles: Mapping[str, Style], key: str, *, log: bool = False, factor: float = 1.0
) -> list[Line]:
    found = curves(study.arms, key, axis_of(study), log=log)
    return [Line(one, styles[one.arm.name], one.arm.label, factor) for one in found]


def _wants_log(study: Study, key: str) -> bool:
    values = [value for one in curves(study.arms, key, axis_of(study)) for value in one.values]
    return wants_log(values)


def _log_caption(study: Study, log: bool) -> str:
    return f"Logarithmic axis{', geometric mean over seeds' if study.seeds > 1 else ''}." if log else ""


# --- one figure -------------------------------------------------------------------------------------------------------


def _figure(
    name: str,
    title: str,
    caption: str,
    study: Study,
    lines: Sequence[Line],
    unit: str,
    log: bool = False,
    *,
    bounds: Bounds = OPEN,
    window: tuple[float, float] | None = None,
) -> Figure:
    axis = axis_of(study)
    shown = _shown(study, lines)
    span = window or _span(shown, log, bounds)
    data = [trace for line in lines for trace in line_traces(line)]
    layout = base_layout(AXIS_TITLES[axis], unit, extent([line.curve for line in lines]), span, log=log)
    layout["annotations"] = _end_labels(shown, span, log)
    return Figure(f"{study.kind}-{name}", title, caption, data, layout)


def _shown(study: Study, lines: Sequence[Line]) -> list[Line]:
    """Those that are seen at first: they make the axis, and have a label at their end."""
    first = prominent(study)
    return [line for line in lines if line.curve.arm.name in first] or list(lines)


def base_layout(x_title: str, y_title: str, x: Sequence[float], y: Sequence[float], *, log: bool) -> Json:
    """Axes with titles and ranges; colors and fonts are set by the page, which knows whether it is dark."""
    y_axis: Json = {"title": {"text": y_title}, "type": "log" if log else "linear", "range": list(y), "zeroline": False}
    if log:
        # Written out, or else 20 between 10 and 100 would be labelled "2".
        y_axis |= {"dtick": 1 if y[1] - y[0] > 1.7 else "D2", "tickformat": "~g"}
    x_axis = {"title": {"text": x_title}, "range": list(x), "zeroline": False}
    return {"xaxis": x_axis, "yaxis": y_axis, "showlegend": False, "hovermode": "x unified"}


def line_traces(line: Line) -> list[Json]:
    """The band of the interval, the mean, and each run that did not finish with a cross where it ends."""
    name, color = html.escape(line.label), line.style.color
    points = line.curve.points
    mean = {
        "x": [point.x for point in points],
        "y": [_finite(point.y.mean, line.factor) for point in points],
        "text": [_reading(point, line.factor) for point in points],
        "hovertemplate": "%{text}",
        "line": {"color": color, "width": 2.25, "dash": line.style.dash},
    }
    traces = [*_band(line), mean | {"mode": "lines"}] if points else []
    traces += [_broken(line, i) for i in range(len(line.curve.broken))]
    return [
        trace | {"type": "scatter", "name": trace.get("name", name), "meta": line.curve.arm.name} for trace in traces
    ]


def _band(line: Line) -> list[Json]:
    """Two borders without a stroke, filled in between; nothing where no point has an interval."""
    inside = [(p.x, p.y.low, p.y.high) for p in line.curve.points if p.y.low is not None and p.y.high is not None]
    if not inside:
        return []
    xs = [x for x, _, _ in inside]
    border: Json = {"x": xs, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    filled = {"fill": "tonexty", "fillcolor": transparent(line.style.color, 0.16)}
    return [
        border | {"y": [low * line.factor for _, low, _ in inside]},
        border | {"y": [high * line.factor for _, _, high in inside]} | filled,
    ]


def _broken(line: Line, index: int) -> Json:
    run = line.curve.broken[index]
    last = len(run.points) - 1
    return {
        "x": [x for x, _ in run.points],
        "y": [y * line.factor for _, y in run.points],
        "mode": "lines+markers",
        "name": html.escape(f"{line.label}, {run.trial.name}, {run.trial.status}"),
        "hovertemplate": "%{y:.4g}",
        "line": {"color": line.style.color, "width": 1, "dash": line.style.dash},
        "marker": {"symbol": "x-thin", "size": [0] * last + [9], "line": {"color": line.style.color, "width": 2}},
    }


def _reading(point: Point, factor: float) -> str:
    """What the pointer shows: the mean and its interval."""
    mean, low, high = point.y.mean, point.y.low, point.y.high
    if low is None or high is None or low == high:
        return compact(mean * factor)
    return f"{compact(mean * factor)} ({compact(low * factor)} to {compact(high * factor)})"


def _finite(value: float, factor: float) -> float | None:
    return value * factor if math.isfinite(value) else None


# --- axes and labels --------------------------------------------------------------------------------------------------


def extent(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the first to the last place on any curve."""
    xs = [x for one in curves for x in [*(p.x for p in one.points), *(x for run in one.broken for x, _ in run.points)]]
    return (min(xs), max(xs)) if xs and min(xs) < max(xs) else (0.0, 1.0)


def padded(values: Sequence[float], log: bool, bounds: Bounds = OPEN) -> tuple[float, float]:
    """The range of an axis around the values, in the axis's own units (powers of ten when logarithmic).

    It starts at the lower bound, if there is one, and goes no higher than the upper.
    """
    scaled = [math.log10(value) for value in values if value > 0] if log else list(values)
    if not scaled:
        return (0.0, 1.0)
    low, high = min(scaled), max(scaled)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return (low - pad if math.isinf(bounds[0]) else bounds[0], min(high + pad, bounds[1]))


def _span(lines: Sequence[Line], log: bool, bounds: Bounds) -> tuple[float, float]:
    """All means, and the bands from the second point on: one wild start must not flatten the rest."""
    values = [value * line.factor for line in lines for value in line.curve.values]
    ends = [
        end * line.factor
        for line in lines
        for p in line.curve.points[1:]
        for end in (p.y.low, p.y.high)
        if end is not None
    ]
    return padded(values + ends, log, bounds)


def _late_window(lines: Sequence[Line]) -> tuple[float, float] | None:
    """The range from a fifth of training on, where the start would take more than half of the height; else None."""
    values = [value * line.factor for line in lines for value in line.curve.values]
    late = [end for line in lines for end in _late(line)]
    if not late or min(late) - min(values) < 0.5 * (max(values) - min(values)):
        return None
    return padded(late, log=False, bounds=PERCENT)


def _late(line: Line) -> list[float]:
    points = line.curve.points
    chosen = points[max(1, len(points) // 5) :]
    ends = [end for p in chosen for end in (p.y.low, p.y.high, p.y.mean) if end is not None and math.isfinite(end)]
    return [end * line.factor for end in ends]


def _end_labels(lines: Sequence[Line], span: tuple[float, float], log: bool) -> list[Json]:
    """Labels in the margin at the end of each line, moved apart where they would touch."""
    ends = [(line, _end(line, log)) for line in lines]
    placed = sorted(((line, y) for line, y in ends if y is not None), key=lambda pair: pair[1])
    heights = spread([y for _, y in placed], LABEL_GAP * (span[1] - span[0]), span)
    return [_end_label(line, y) for (line, _), y in zip(placed, heights)]


def _end(line: Line, log: bool) -> float | None:
    means = [p.y.mean for p in line.curve.points if math.isfinite(p.y.mean)]
    single = [y for run in line.curve.broken for _, y in run.points[-1:]]
    last = (means[-1:] or single[-1:] or [math.nan])[0] * line.factor
    if not math.isfinite(last) or (log and last <= 0):
        return None
    return math.log10(last) if log else last


def _end_label(line: Line, y: float) -> Json:
    place = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 6, "y": y, "yref": "y", "yanchor": "middle"}
    text = {"text": html.escape(line.label), "font": {"color": line.style.color, "size": 12}, "showarrow": False}
    return place | text | {"name": line.curve.arm.name}


def spread(values: Sequence[float], gap: float, span: tuple[float, float]) -> list[float]:
    """Ascending heights moved apart to at least `gap`, as little as possible, and kept inside `span` where they fit."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _top(groups[-2], gap, span) + gap > _bottom(groups[-1], gap, span):
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap, span) + i * gap for group in groups for i in range(len(group))]


def _bottom(group: Sequence[float], gap: float, span: tuple[float, float]) -> float:
    """The lowest height of a group that stands `gap` apart around its own middle."""
    height = gap * (len(group) - 1)
    middle = math.fsum(group) / len(group)
    return max(span[0], min(span[1] - height, middle - height / 2))


def _top(group: Sequence[float], gap: float, span: tuple[float, float]) -> float:
    return _bottom(group, gap, span) + gap * (len(group) - 1)
