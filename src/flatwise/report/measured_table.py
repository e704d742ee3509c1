"""The numbers of measured networks as a table, in sentences, and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flatwise.report.measured import Network, read_networks
from flatwise.report.palette import Style
from flatwise.report.quantities import MISSING, compact, plain, significant
from flatwise.report.study import number
from flatwise.report.tables import Cell
from flatwise.statistics import mean_interval

WELL = 0.01
"""A residual, relative to its eigenvalue, that needs no remark: where a search ended early others may be the ones that lack."""


@dataclass(frozen=True)
class Column:
    """A column: its heading for the page and for the terminal, and the cell of a network."""

    heading: str
    short: str
    cell: Callable[[Network], Cell]


@dataclass(frozen=True)
class Row:
    """One network; `first` of its run, whose style it has."""

    label: str
    step: str
    first: bool
    style: Style
    cells: Sequence[Cell]


def measured(value: float, error: float, scale: float = 1.0) -> Cell:
    """A value with its standard error, as many decimals as that deserves."""
    value, error = value * scale, error * scale
    if not math.isfinite(value):
        return Cell(MISSING)
    if not math.isfinite(error) or not error:
        return Cell(compact(value))
    if not 1e-4 <= abs(error) < 1e6:
        return Cell(compact(value), f"± {compact(error)}")
    decimals = significant(error, 2)
    return Cell(plain(value, decimals), f"± {plain(error, decimals)}")


def _plain(key: str) -> Callable[[Network], Cell]:
    return lambda network: measured(number(network.found, key), math.nan)


def _estimate(name: str) -> Callable[[Network], Cell]:
    return lambda network: measured(network.value(name), number(network.part(name), "standard_error"))


def _eigenvalue(end: str) -> Callable[[Network], Cell]:
    def cell(network: Network) -> Cell:
        pairs: dict[str, Any] = network.part("eigenvalues").get(end) or {}
        if not pairs.get("values"):
            return Cell(MISSING)
        value, residual = (float(pairs[name][0]) for name in ("values", "residuals"))
        is_known = network.part("eigenvalues")["converged"] or residual <= WELL * abs(value)
        return Cell(compact(value), f"± {compact(residual)}", "" if is_known else "not converged")

    return cell


def _negative(network: Network) -> Cell:
    share = network.negative
    return measured(number(share, "value"), number(share, "standard_error"), 100.0)


def _spent(network: Network) -> Cell:
    products, seconds = spent(network, "products"), spent(network, "seconds")
    return Cell(plain(products, 0), f"{compact(seconds)} s") if products else Cell(MISSING)


def spent(network: Network, what: str) -> float:
    """The products, seconds or gradients of all quantities of a network."""
    parts = [network.part(name) for name in network.found.get("plan", {}).get("what", [])]
    return math.fsum(number(part, what) for part in parts if part)


COLUMNS = (
    Column("Loss", "Loss", _plain("loss")),
    Column("Gradient norm", "Gradient", _plain("gradient_norm")),
    Column("Top eigenvalue ± residual", "Top λ", _eigenvalue("top")),
    Column("Lowest eigenvalue ± residual", "Lowest λ", _eigenvalue("lowest")),
    Column("Trace", "Trace", _estimate("trace")),
    Column("Negative part (%)", "Negative (%)", _negative),
    Column("Frobenius norm", "Frobenius", _estimate("frobenius")),
    Column("Products", "Products", _spent),
)


def measured_rows(networks: Sequence[Network]) -> tuple[list[Column], list[Row]]:
    """The columns that say something, and a row for each network."""
    cells = {column.heading: [column.cell(network) for network in networks] for column in COLUMNS}
    columns = [column for column in COLUMNS if any(cell.text != MISSING for cell in cells[column.heading])]
    rows = [
        Row(
            label=network.run,
            step=MISSING if network.step is None else f"{network.step:,}",
            first=i == 0 or networks[i - 1].run != network.run,
            style=network.style,
            cells=[cells[column.heading][i] for column in columns],
        )
        for i, network in enumerate(networks)
    ]
    return columns, rows


def print_measurements(files: Sequence[Path], console: Console) -> None:
    """Print the numbers of measured networks, and the sentences that go with them."""
    networks = read_networks(files)
    columns, rows = measured_rows(networks)
    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("Network")
    table.add_column("Step", justify="right")
    for column in columns:
        table.add_column(column.short, justify="right")
    for row in rows:
        table.add_row(escape(row.label) if row.first else "", row.step, *(_stacked(cell) for cell in row.cells))
    console.print(table)
    for sentence in [*sentences(networks), *notes(networks)]:
        console.print(sentence, "", sep="\n", markup=False, highlight=False)


def _stacked(cell: Cell) -> str:
    return "\n".join([cell.text, *(f"[dim]{line}[/dim]" for line in (cell.range, cell.note) if line)])


# --- sentences --------------------------------------------------------------------------------------------------------


def sentences(networks: Sequence[Network]) -> list[str]:
    """What the last checkpoint of every arm has, one sentence for each quantity, and where it began.

    The step is said where that is not the end of the run.
    """
    ends, starts = _ends(networks), [n for n in networks if n.step == 0 and n.finite]
    quantities = (
        ("The top Hessian eigenvalue", lambda n: n.top, _by_residual, ""),
        ("The trace", lambda n: n.value("trace"), _by_error("trace"), ""),
        ("The negative part of the spectrum", lambda n: 100 * number(n.negative, "value"), _by_share, "\u00a0%"),
    )
    found = [_sentence(what, ends, starts, read, error, unit) for what, read, error, unit in quantities]
    return [sentence for sentence in found if sentence] or ["No curvature was measured."]


Read = Callable[[Network], float]


def _ends(networks: Sequence[Network]) -> dict[str, list[Network]]:
    """The last network of each run, by arm."""
    last = {(n.arm, n.seed): n for n in networks if n.finite}
    return {arm: [n for n in last.values() if n.arm == arm] for arm in dict.fromkeys(n.arm for n in last.values())}


def _sentence(
    what: str, ends: dict[str, list[Network]], starts: Sequence[Network], read: Read, error: Read, unit: str
) -> str:
    clauses = [clause for arm, group in ends.items() if (clause := _clause(arm, group, read, error, unit))]
    if not clauses:
        return ""
    cells = [measured(read(n), error(n)) for n in starts if math.isfinite(read(n))]
    began = sorted({f"{cell.text} {cell.range}".strip() for cell in cells})
    single = len(began) == 1 and any(n.step for group in ends.values() for n in group)
    before = f"; at initialisation it is {began[0]}{unit}" if single else ""
    return f"{what} is {_listed(clauses)}{before}."


def _clause(arm: str, group: Sequence[Network], read: Read, error: Read, unit: str) -> str:
    interval = mean_interval([read(n) for n in group])
    if not interval.n:
        return ""
    if interval.n == 1:
        cell = measured(read(group[0]), error(group[0]))
        value = f"{cell.text}{unit}" if not cell.range else f"{cell.text} {cell.range}{unit}"
    else:
        ends = f" (95 % interval {compact(interval.low or 0.0)} to {compact(interval.high or 0.0)} over {interval.n} seeds)"
        value = f"{compact(interval.mean)}{unit}{ends if interval.low is not None else ''}"
    return f"{value} {'with' if group[0].seed is not None else 'for'} {arm}{_moment(group)}"


def _moment(group: Sequence[Network]) -> str:
    """Said next to a number that is not of the ends of the runs; those of an arm may have been measured at different steps."""
    if all(n.ended for n in group):
        return ""
    first, *others = sorted({n.step or 0 for n in group})
    if others:
        return f" at steps {first:,} to {others[-1]:,}"
    return f" at step {first:,}" if first else " at initialisation"


def _listed(clauses: Sequence[str]) -> str:
    return clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]


def _by_residual(network: Network) -> float:
    del network  # the residual bounds the distance of an eigenvalue; it is no standard error
    return math.nan


def _by_error(name: str) -> Read:
    return lambda network: number(network.part(name), "standard_error")


def _by_share(network: Network) -> float:
    return 100 * number(network.negative, "standard_error")


def notes(networks: Sequence[Network]) -> list[str]:
    """What must be known before the numbers are read."""
    lost = [f"{n.label}: {n.found['reason']}." for n in networks if not n.finite]
    warned = [f"{n.label}: {text}." for n in networks for text in n.found.get("warnings") or []]
    return lost + warned
