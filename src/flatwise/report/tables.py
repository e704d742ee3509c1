"""The numbers of a study as a plain table, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flatwise.report.crowds import by_reference
from flatwise.report.differences import Difference, differences
from flatwise.report.edges import EdgeRatio, EdgeResult, edge_results
from flatwise.report.notices import notices
from flatwise.report.quantities import (
    COMPARED,
    MINUS,
    MISSING,
    QUANTITIES,
    Quantity,
    p_value,
    ratios,
    signed,
)
from flatwise.report.sentences import summary
from flatwise.report.study import Arm, Study, read
from flatwise.statistics import Interval, mean_interval


@dataclass(frozen=True)
class Cell:
    """A mean as shown, its interval over seeds, and what must be said next to it; the latter two may be empty."""

    text: str
    range: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One arm: its name, label and role, how many of its seeds finished, and a cell per column."""

    name: str
    label: str
    role: str
    seeds: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class DifferenceRow:
    """One pair in one quantity: the labels, the difference as shown, what it shows, its corrected p, and the numbers."""

    first: str
    second: str
    cell: Cell
    verdict: str
    p: str
    difference: Difference


@dataclass(frozen=True)
class EdgeRow:
    """One run against its edge: top eigenvalue / edge and top eigenvalue / (2/lr), medians over the second half."""

    label: str
    edge: str
    seed: str
    to_edge: str
    to_gd_edge: str
    probes: int
    status: str


@dataclass(frozen=True)
class Table:
    """Everything a study says in numbers. `columns` go with the cells of `rows`; `differences` are by heading."""

    title: str
    summary: Sequence[str]
    columns: Sequence[Quantity]
    rows: Sequence[Row]
    differences: Sequence[tuple[str, Sequence[DifferenceRow]]]
    edges: Sequence[EdgeRow]
    notes: Sequence[str]

    @property
    def headings(self) -> list[str]:
        """The heading of each column, with its unit."""
        return [quantity.title for quantity in self.columns]


def table(folder: str | Path) -> Table:
    """The numbers of a comparison, edge or run folder.

    Raises:
        RunError: the folder is none of these.
    """
    return study_table(read(folder))


def study_table(study: Study) -> Table:
    """The numbers of a study that was read already; those of its edge study are among them."""
    quantities = QUANTITIES[
        study.kind == "edge" :
    ]  # the test accuracy, which comes first, is not what an edge is about
    columns = [q for q in quantities if any(mean_interval(arm.by_seed(q.key).values()).n for arm in study.arms)]
    rows = [_row(arm, columns) for arm in study.arms]
    compared = () if study.kind == "edge" else COMPARED
    pairs = [group for q in compared for group in _difference_groups(study, q)]
    results = [result for part in (study, study.edge) if part for result in edge_results(part)]
    edges = [_edge_row(result, found) for result in results for found in result.ratios]
    return Table(study.title, summary(study), columns, rows, [p for p in pairs if p[1]], edges, notices(study))


def _row(arm: Arm, columns: Sequence[Quantity]) -> Row:
    return Row(arm.name, arm.label, arm.role, _seeds(arm), [_cell(arm, quantity) for quantity in columns])


def _seeds(arm: Arm) -> str:
    finished, planned = len(arm.finished), len(arm.trials)
    if finished < planned:
        return f"{finished} of {planned} seeds finished"
    return "1 seed, no interval" if planned == 1 else f"{planned} seeds"


def _cell(arm: Arm, quantity: Quantity) -> Cell:
    interval = mean_interval(arm.by_seed(quantity.key).values())
    if not interval.n:
        return Cell(MISSING)
    return Cell(quantity.text(interval), quantity.range(interval), _note(interval))


def _note(interval: Interval) -> str:
    """Said next to a mean that leaves seeds out."""
    return f"{interval.n} of {interval.n + interval.excluded} seeds" if interval.excluded else ""


def _difference_note(interval: Interval) -> str:
    """As `_note`; and why there is no interval where all seeds agree."""
    return ", ".join(filter(None, (_note(interval), "same in all seeds" if interval.degenerate else "")))


WORDS = {"higher": "higher", "lower": "lower", "unclear": "no difference shown", "one seed": "one seed, no interval"}


def _difference_groups(study: Study, quantity: Quantity) -> list[tuple[str, list[DifferenceRow]]]:
    """The rows by heading: those of a crowd by the arm that the others are compared with."""
    found = differences(study, quantity)
    if not study.is_crowded:
        return [(quantity.heading, [_difference_row(d) for d in found])]
    return [
        (f"{quantity.heading} against {arm.label}", [_difference_row(d) for d in group])
        for arm, group in by_reference(found)
    ]


def _difference_row(d: Difference) -> DifferenceRow:
    text = f"{signed(d.quantity.text(d.interval))} {d.quantity.difference_unit}".strip()
    cell = Cell(text, d.quantity.range(d.interval), _difference_note(d.interval))
    return DifferenceRow(d.first.label, d.second.label, cell, WORDS[d.verdict], p_value(d.p), d)


def _edge_row(result: EdgeResult, found: EdgeRatio) -> EdgeRow:
    trial = found.trial
    seed = MISSING if trial.seed is None else str(trial.seed)
    (to_edge,), (to_gd_edge,) = ratios(found.to_edge), ratios(found.to_gd_edge)
    return EdgeRow(result.arm.label, result.edge_name, seed, to_edge, to_gd_edge, found.probes, trial.status)


# --- the terminal -----------------------------------------------------------------------------------------------------

WIDE = 130  # columns of a terminal from which on all quantities are shown


def print_table(folder: str | Path, console: Console) -> None:
    """Print the tables of a folder and of its sections, the sentences that go with them, and what went wrong in its runs."""
    study = read(folder)
    found = study_table(study)
    for part in study.parts:
        _print_part(study_table(part), part.heading, console)
    if found.edges:
        console.print(_edges_table(found.edges))
    for sentence in [*found.summary, *found.notes]:
        console.print(sentence, "", sep="\n", markup=False, highlight=False)


def _print_part(found: Table, heading: str, console: Console) -> None:
    if heading:
        console.print(f"\n[bold]{escape(heading)}[/bold]")
    if found.columns:
        console.print(_arms_table(found, wide=console.width >= WIDE))
    for title, rows in found.differences:
        console.print(_differences_table(title, rows))


def _arms_table(found: Table, *, wide: bool) -> RichTable:
    shown = [i for i, quantity in enumerate(found.columns) if wide or quantity.short]
    grid = _grid(found.title, "Method", *(found.columns[i].title if wide else found.columns[i].short for i in shown))
    for row in found.rows:
        grid.add_row(f"{escape(row.label)}\n[dim]{row.seeds}[/dim]", *(_stacked(row.cells[i]) for i in shown))
    return grid


def _differences_table(heading: str, rows: Sequence[DifferenceRow]) -> RichTable:
    grid = _grid(f"{heading}, paired differences over seeds", "Pair", "Difference", "95 % interval", "p (Holm)", "")
    for row in rows:
        difference = "\n".join(filter(None, (row.cell.text, row.cell.note)))
        grid.add_row(escape(f"{row.first} {MINUS} {row.second}"), difference, row.cell.range, row.p, row.verdict)
    return grid


def _edges_table(rows: Sequence[EdgeRow]) -> RichTable:
    title = "Top eigenvalue against the edge, medians over the second half"
    grid = _grid(title, "Method", "Own edge", "Seed", "/ own edge", "/ (2/lr)", "")
    for row in rows:
        status = "" if row.status == "finished" else row.status
        grid.add_row(escape(row.label), escape(row.edge), row.seed, row.to_edge, row.to_gd_edge, status)
    return grid


def _grid(title: str, *headings: str) -> RichTable:
    grid = RichTable(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    grid.padding, grid.pad_edge = (0, 0, 0, 1), False
    for i, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if i else "left")
    return grid


def _stacked(cell: Cell) -> str:
    return "\n".join([cell.text, *(f"[dim]{line}[/dim]" for line in (cell.range, cell.note) if line)])
