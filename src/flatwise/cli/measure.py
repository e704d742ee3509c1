"""`flatwise measure`: curvature of the checkpoints of runs, and of networks of one's own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flatwise.cli.failures import tell_failures
from flatwise.measurements.plan import Plan
from flatwise.processes import cores

if TYPE_CHECKING:
    from flatwise.measurements.units import Unit


@dataclass(frozen=True)
class Measure:
    """Measure the curvature of checkpoints, or of networks that a function of yours returns, and write a report.

    The same command again measures only what is not there yet.
    """

    targets: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, finished or running; folders of comparisons; functions of yours as module:function."""

    plan: Annotated[Plan, tyro.conf.arg(name="")] = field(default_factory=Plan)

    checkpoints: tuple[str, ...] = ()
    """Of runs: all, first (the initial weights), last, or steps; default: all. Of functions: what goes to their `checkpoint`."""

    data_root: Path | None = None
    """Where downloaded data lies; default: where the run says."""

    workers: int | None = None
    """Processes at a time; default: one per core."""

    threads: int | None = None
    """Threads of each process; default: the cores, or $OMP_NUM_THREADS, shared out."""

    dry_run: bool = False
    """Only say what it would take: products, seconds and memory."""

    again: bool = False
    """Measure anew what is there already."""

    out: Path | None = None
    """The folder of the report; default: RUN/measurements for one run, else measurements."""

    def run(self, words: Sequence[str]) -> int:
        """Measure, print a table and write the report."""
        from flatwise.measurements.targets import Request, examine_runs

        self._check()
        out = self.out or self._default_folder()
        root = str(self.data_root) if self.data_root else None
        units = Request(self.targets, self.plan, self.checkpoints, root, out).units()
        todo = units if self.again else [unit for unit in units if not unit.done()]
        if self.dry_run:
            return _forecast(todo, len(units), self.workers)
        examine_runs(todo)
        for unit in todo:
            if self.again:
                unit.place.unlink(missing_ok=True)
        return self._carry_out(units, out, shlex.join(["flatwise", *words]))

    def _check(self) -> None:
        if not self.targets:
            raise ValueError("nothing to measure: give a run folder, or a function as module:function")
        for number, name in ((self.workers, "processes"), (self.threads, "threads")):
            if number is not None and number < 1:
                raise ValueError(f"the number of {name} must be at least 1, not {number}")

    def _carry_out(self, units: Sequence[Unit], out: Path, command: str) -> int:
        from flatwise.measurements.units import carry_out

        processes = min(self.workers or cores(), len(units))
        threads = self.threads or max(1, _all_threads() // processes)
        ready = [replace(unit, threads=threads, command=command) for unit in units]
        return _show(ready, carry_out(ready, processes, out / "log.txt"), out / "report.html", command)

    def _default_folder(self) -> Path:
        one = Path(self.targets[0])
        is_run = len(self.targets) == 1 and one.is_dir()
        return one / "measurements" if is_run else Path("measurements")


def _all_threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else cores()


def _show(units: Sequence[Unit], failures: dict[str, str], page: Path, command: str) -> int:
    """Print the table and what failed, write the page, and return the exit code."""
    from rich.console import Console

    from flatwise import report

    tell_failures(failures)
    files = [unit.place for unit in units if unit.done()]
    if not files:
        return 1
    report.build_measurements(files, page, command)
    report.print_measurements(files, Console())
    print(f"report: {page}")
    return 1 if failures else 0


def _forecast(todo: Sequence[Unit], number: int, workers: int | None) -> int:
    """Say what each target takes, going by its first network, and what all take together."""
    from flatwise.measurements.cost import expense
    from flatwise.training.progress import duration

    groups: dict[Path, list[Unit]] = {}
    for unit in todo:
        groups.setdefault(unit.place.parent, []).append(unit)
    seconds, products = 0.0, 0
    for group in groups.values():
        one = expense(group[0].source.build(group[0].plan), group[0].plan)
        print(f"{group[0].name}: {one}")
        seconds, products = seconds + len(group) * one.seconds, products + len(group) * sum(one.products.values())
    processes = max(1, min(workers or cores(), len(todo)))
    print(
        f"in sum: {len(todo):,} of {number:,} networks to measure, about {products:,} products, {duration(seconds)} of work "
        f"on {processes} {'process' if processes == 1 else 'processes'}; nothing was measured"
    )
    return 0
