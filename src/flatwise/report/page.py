"""The page: one self-contained HTML file that opens offline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flatwise.report.chosen import choices
from flatwise.report.crowds import prominent
from flatwise.report.edge_figures import CEILING, EDGE, edge_figures
from flatwise.report.edges import edge_results
from flatwise.report.figures import Figure, loss_figure, training_figures
from flatwise.report.forest import Mark, forest
from flatwise.report.palette import Style, styles
from flatwise.report.provenance import provenance
from flatwise.report.study import Arm, Study, read, read_runs
from flatwise.report.tables import Table, study_table
from flatwise.runs import replacing

MEASURED = "measurements/report.html"
"""Where `flatwise measure` leaves its page in the folder of a run or a comparison."""


def build(folder: str | Path) -> Path:
    """Write `report.html` into a comparison, edge or run folder, and return its path.

    Raises:
        RunError: the folder is none of these.
    """
    folder = Path(folder)
    measured = MEASURED if (folder / MEASURED).is_file() else None
    return _write(read(folder), folder / "report.html", measured)


def build_runs(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report of single run folders to the file `out`, and return its path.

    Raises:
        RunError: no path is given, or one of them is no run.
    """
    return _write(read_runs(paths), Path(out))


@dataclass(frozen=True)
class Part:
    """What the page shows of a study or of one of its sections: numbers, forest plots by heading, and curves."""

    table: Table
    heading: str
    seeds: int
    arms: Sequence[Arm]
    shown: Sequence[str]
    forests: Sequence[Sequence[Mark]]
    figures: Sequence[Figure]


def render(study: Study, measured: str | None = None) -> str:
    """The page as text, with a link to the page `measured` about the curvature of checkpoints, if there is one."""
    edge = next((part for part in (study, study.edge) if part and edge_results(part)), None)
    chosen = styles(*study.parts, *filter(None, [study.edge]))
    parts = [_part(part, i, chosen) for i, part in enumerate(study.parts)]
    panels = edge_figures(edge, chosen) if edge else []
    losses = loss_figure(edge, chosen) if edge else []
    figures = [*(figure for part in parts for figure in part.figures), *panels, *losses]
    others = [*study.sections, *filter(None, [study.edge])]
    return template("report.html.j2").render(
        table=study_table(study),
        measured=measured,
        parts=parts,
        choices=choices(study),
        styles=chosen,
        edge_style=EDGE,
        ceiling_style=CEILING,
        edge_seeds=edge.seeds if edge else 0,
        panels=panels,
        losses=losses,
        provenances=[provenance(study), *(provenance(other, study) for other in others)],
        figures=script_json({figure.name: figure.plot for figure in figures}),
        plotly=plotly(),
    )


def _part(study: Study, place: int, chosen: Mapping[str, Style]) -> Part:
    table = study_table(study)
    drawn = [] if study.kind == "edge" else training_figures(study, chosen)
    return Part(
        table=table,
        heading=study.heading,
        seeds=study.seeds,
        arms=study.arms,
        shown=prominent(study),
        forests=[forest([row.difference for row in rows]) for _, rows in table.differences],
        figures=[replace(figure, name=f"{figure.name}-{place}") for figure in drawn] if place else drawn,
    )


def _write(study: Study, path: Path, measured: str | None = None) -> Path:
    text = render(study, measured)
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def template(name: str) -> Any:
    """A template of the report."""
    loader = PackageLoader("flatwise.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def plotly() -> Markup:
    """The text of plotly.js."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
