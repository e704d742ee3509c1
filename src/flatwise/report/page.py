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
from flatwise.report.paper_figures import Format, draw_each
from flatwise.report.provenance import provenance
from flatwise.report.study import Arm, Study, read, read_runs
from flatwise.report.sweep_figures import sweep_figures
from flatwise.report.tables import Table, study_table
from flatwise.runs import replacing

MEASURED = "measurements/report.html"
"""Where `flatwise measure` leaves its page in the folder of a run or a comparison."""


def build(folder: str | Path, formats: Sequence[Format] = ()) -> Path:
    """Write `report.html` into a comparison, edge or run folder, and return its path.

    Args:
        folder: of the comparison, the runs at the edge of stability, or a run.
        formats: in which the figures are drawn for a paper, too, into `figures` beside the page.

    Raises:
        RunError: the folder is none of these.
        ValueError: figures are wanted and matplotlib cannot be imported.
    """
    folder = Path(folder)
    measured = MEASURED if (folder / MEASURED).is_file() else None
    return _write(read(folder), folder / "report.html", formats, measured)


def build_runs(paths: Sequence[str | Path], out: str | Path, formats: Sequence[Format] = ()) -> Path:
    """Write the report of single run folders to the file `out`, and return its path; `formats` as in `build`.

    Raises:
        RunError: no path is given, or one of them is no run.
        ValueError: figures are wanted and matplotlib cannot be imported.
    """
    return _write(read_runs(paths), Path(out), formats)


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
    edge, chosen = _edge(study), _styles(study)
    parts = [_part(part, i, chosen) for i, part in enumerate(study.parts)]
    panels, losses = _edge_figures(study)
    across = sweep_figures(study)
    figures = [*across, *(figure for part in parts for figure in part.figures), *panels, *losses]
    others = [*study.sections, *filter(None, [study.edge])]
    return template("report.html.j2").render(
        table=study_table(study),
        measured=measured,
        parts=parts,
        across=across,
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


def study_figures(study: Study) -> list[Figure]:
    """All figures of the page."""
    chosen = _styles(study)
    drawn = [figure for i, part in enumerate(study.parts) for figure in _training(part, i, chosen)]
    return [*sweep_figures(study), *drawn, *(figure for group in _edge_figures(study) for figure in group)]


def _styles(study: Study) -> dict[str, Style]:
    return styles(*study.parts, *filter(None, [study.edge]))


def _edge(study: Study) -> Study | None:
    """The part of a study that has runs at the edge of stability."""
    return next((part for part in (study, study.edge) if part and edge_results(part)), None)


def _edge_figures(study: Study) -> tuple[list[Figure], list[Figure]]:
    """The panels of the edge of stability, and their training losses."""
    edge, chosen = _edge(study), _styles(study)
    return (edge_figures(edge, chosen), loss_figure(edge, chosen)) if edge else ([], [])


def _training(study: Study, place: int, chosen: Mapping[str, Style]) -> list[Figure]:
    """The curves over training of the part at this place of the page, which has names of its own."""
    drawn = [] if study.kind == "edge" else training_figures(study, chosen)
    return [replace(figure, name=f"{figure.name}-{place}") for figure in drawn] if place else drawn


def _part(study: Study, place: int, chosen: Mapping[str, Style]) -> Part:
    table = study_table(study)
    return Part(
        table=table,
        heading=study.heading,
        seeds=study.seeds,
        arms=study.arms,
        shown=prominent(study),
        forests=[forest([row.difference for row in rows]) for _, rows in table.differences],
        figures=_training(study, place, chosen),
    )


def _write(study: Study, path: Path, formats: Sequence[Format], measured: str | None = None) -> Path:
    text = render(study, measured)
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    draw_each(study_figures(study) if formats else [], path.parent / "figures", formats)
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
