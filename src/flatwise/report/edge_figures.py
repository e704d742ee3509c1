"""The edge figure: one panel per arm, its top eigenvalue against its own edge and against 2/lr, on one common axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flatwise.report.curves import Curve, curve
from flatwise.report.edges import edge_name, edge_results, is_gd_edge
from flatwise.report.figures import Figure, Json, Line, base_layout, extent, line_traces, padded
from flatwise.report.palette import Style
from flatwise.report.study import Arm, Study

# Greys that stand on white as well as on black.
EDGE = Style("#6f7782", "solid")
CEILING = Style("#949ba5", "dash")


@dataclass(frozen=True)
class Panel:
    """The three curves of one arm, on a logarithmic axis; `edge` is None where the arm's own edge is 2/lr."""

    arm: Arm
    eigenvalue: Curve
    edge: Curve | None
    ceiling: Curve

    @property
    def curves(self) -> list[Curve]:
        """Those that are drawn."""
        return [one for one in (self.eigenvalue, self.edge, self.ceiling) if one]

    @property
    def values(self) -> list[float]:
        """What the axis must show, the starts of the bands left out."""
        ends = [end for one in self.curves for p in one.points[1:] for end in (p.y.low, p.y.high) if end is not None]
        return [value for value in [*ends, *(v for one in self.curves for v in one.values)] if value > 0]


def edge_figures(study: Study, styles: Mapping[str, Style]) -> list[Figure]:
    """One figure for each arm in which an edge was recorded, all with the same vertical axis."""
    panels = [_panel(result.arm) for result in edge_results(study)]
    values = [value for panel in panels for value in panel.values]
    return [_figure(panel, styles[panel.arm.name], padded(values, log=True)) for panel in panels if panel.values]


def _panel(arm: Arm) -> Panel:
    eigenvalue, edge, ceiling = (curve(arm, key, "step", log=True) for key in ("top_eigenvalue", "edge", "gd_edge"))
    return Panel(arm, eigenvalue, None if is_gd_edge(edge_name(arm)) else edge, ceiling)


def _figure(panel: Panel, style: Style, span: tuple[float, float]) -> Figure:
    lines = [Line(panel.ceiling, CEILING, "2/lr"), Line(panel.eigenvalue, style, "top eigenvalue")]
    if panel.edge:
        lines.insert(1, Line(panel.edge, EDGE, edge_name(panel.arm)))
    layout = base_layout("training step", "top eigenvalue", extent(panel.curves), span, log=True)
    layout["annotations"] = _ceiling_label(panel)
    data = [trace for line in lines for trace in line_traces(line)]
    return Figure(f"edge-{panel.arm.name}", panel.arm.label, "", data, layout)


def _ceiling_label(panel: Panel) -> Sequence[Json]:
    """ "2/lr = 10", at the left end of its line, on the side where the top eigenvalue does not start."""
    levels = [value for value in panel.ceiling.values if value > 0]
    if not levels:
        return []
    starts_above = panel.eigenvalue.values[:1] > levels[:1]
    text = f"{'2/lr' if panel.edge else 'its edge 2/lr'} = {levels[0]:.3g}"
    place = {"x": 0.02, "xref": "paper", "xanchor": "left", "y": math.log10(levels[0]), "yref": "y"}
    return [
        place | {"yanchor": "top" if starts_above else "bottom", "text": text, "showarrow": False, "font": {"size": 12}}
    ]
