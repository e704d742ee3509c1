"""Accuracy and curvature across a sweep: over the numeric setting with most values, a line for each combination of the others."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flatwise.report.figures import LABEL_GAP, Figure, Json, base_layout, padded, spread
from flatwise.report.palette import OTHERS
from flatwise.report.quantities import TEST_ACCURACY, TOP_EIGENVALUE, Quantity
from flatwise.report.study import Arm, Study
from flatwise.statistics import Interval, mean_interval

MOST = 8
"""So many lines are drawn: those that reach the highest accuracy."""

WIDE = 10.0
"""From this ratio of the largest value to the smallest on, the horizontal axis is logarithmic."""


@dataclass(frozen=True)
class Row:
    """Combinations that differ in the setting of the horizontal axis alone, with its values."""

    label: str
    arms: Sequence[tuple[float, Arm]]

    def points(self, quantity: Quantity) -> list[tuple[float, Interval]]:
        """The means over seeds, those that there are."""
        found = [(x, mean_interval(arm.by_seed(quantity.key).values())) for x, arm in self.arms]
        return [(x, interval.map(lambda value: value * quantity.scale)) for x, interval in found if interval.n]


def sweep_figures(study: Study) -> list[Figure]:
    """The figures of a sweep; none where no number is swept, and none of what was not measured."""
    name = _horizontal(study)
    if name is None:
        return []
    rows = _rows(study, name)
    best = sorted(rows, key=lambda row: -max((p.mean for _, p in row.points(TEST_ACCURACY)), default=-math.inf))[:MOST]
    note = f"The {MOST} of {len(rows)} lines that reach the highest accuracy." if len(rows) > MOST else ""
    quantities = [q for q in (TEST_ACCURACY, TOP_EIGENVALUE) if any(row.points(q) for row in best)]
    return [_figure(q, name, [row for row in best if row.points(q)], note) for q in quantities]


def _horizontal(study: Study) -> str | None:
    """The swept setting with most different numbers, the first of them; None where none has two."""
    values: dict[str, set[float]] = {}
    for arm in study.arms if study.kind == "sweep" else ():
        for name, value in arm.values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault(name, set()).add(float(value))
    return max((name for name in values if len(values[name]) > 1), key=lambda name: len(values[name]), default=None)


def _rows(study: Study, name: str) -> list[Row]:
    found: dict[str, list[tuple[float, Arm]]] = {}
    for arm in study.arms:
        if isinstance(arm.values.get(name), (int, float)):
            found.setdefault(_label(arm.values, name), []).append((float(arm.values[name]), arm))
    return [Row(label, sorted(arms, key=lambda one: one[0])) for label, arms in found.items()]


def _label(values: Mapping[str, object], name: str) -> str:
    """The other settings in words."""
    others = {key: value for key, value in values.items() if key != name}
    return ", ".join(str(value) if isinstance(value, str) else f"{key} {_text(value)}" for key, value in others.items())


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _figure(quantity: Quantity, name: str, rows: Sequence[Row], note: str) -> Figure:
    points = [point for row in rows for point in row.points(quantity)]
    log = min(x for x, _ in points) > 0 and max(x for x, _ in points) / min(x for x, _ in points) >= WIDE
    span = padded([value for _, p in points for value in (p.mean, p.low, p.high) if value is not None], log=False)
    layout = base_layout(name, quantity.title.lower(), (0, 1), span, log=False)
    layout["xaxis"] |= _ticks(sorted({x for x, _ in points}), log=log)
    layout["annotations"] = _labels(quantity, rows, span)
    layout["hovermode"] = "closest"
    data = [_trace(row.label, row.points(quantity), OTHERS[i % len(OTHERS)]) for i, row in enumerate(rows)]
    return Figure(f"sweep-{quantity.key}", f"{quantity.heading} over {name}", note, data, layout)


def _ticks(values: Sequence[float], *, log: bool) -> Json:
    """An axis with a tick at each value that was tried."""
    ends = padded(values, log)
    return {"type": "log" if log else "linear", "range": list(ends), "tickvals": list(values), "tickformat": "~g"}


def _trace(label: str, points: Sequence[tuple[float, Interval]], color: str) -> Json:
    above = [0.0 if p.high is None else p.high - p.mean for _, p in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(label),
        "x": [x for x, _ in points],
        "y": [p.mean for _, p in points],
        "error_y": {"type": "data", "array": above, "thickness": 1.2, "width": 3},
        "line": {"color": color, "width": 2.25},
        "marker": {"size": 7},
    }


def _labels(quantity: Quantity, rows: Sequence[Row], span: tuple[float, float]) -> list[Json]:
    """What each line is, at its end."""
    ends = sorted(((row.points(quantity)[-1][1].mean, i) for i, row in enumerate(rows) if row.label))
    heights = spread([y for y, _ in ends], LABEL_GAP * (span[1] - span[0]), span)
    place = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 6, "yref": "y", "yanchor": "middle"}
    return [
        place
        | {"y": y, "text": html.escape(rows[i].label), "showarrow": False, "name": rows[i].label}
        | {"font": {"color": OTHERS[i % len(OTHERS)], "size": 12}}
        for y, (_, i) in zip(heights, ends)
    ]
