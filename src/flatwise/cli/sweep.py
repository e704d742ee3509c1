"""`flatwise sweep`: combinations of settings times seeds, table, report, numbers for one's own analysis."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flatwise.cli.compare import check_workers
from flatwise.processes import EngineName
from flatwise.training.config import Settings

if TYPE_CHECKING:
    from flatwise.experiments.sweep import Sweep as Plan


@dataclass(frozen=True)
class Sweep:
    """Train all combinations of some settings over seeds, print a table and write a report; the same command continues.

    More values, settings or seeds in a later command are added to the runs that are there.
    """

    method: str = "sam"
    """The method by name, unless methods are swept: `flatwise list methods` shows them; or module:Class of your own."""

    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE [...]", help_behavior_hint="")] = ()
    """What is swept: lr=0.01,0.1 rho=0.05,0.1 model=mlp,cnn6 method=sgd,sam widths=64x64,128 or tsam.tilt=1,5."""

    grid: Path | None = None
    """A JSON file with an object of settings and lists of values, or with a list of such objects, each a grid of its own."""

    seeds: int = 3
    """How many seeds: 0, 1, 2 ..."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)

    workers: int | None = None
    """Processes at a time; default: one per core."""

    engine: EngineName = "local"
    """Where they run: on this machine, or on a Ray cluster: that of RAY_ADDRESS or of this machine, else one started here."""

    dry_run: bool = False
    """Only say what it would take: runs, steps, evaluations, and the time, from a few steps of each kind of run."""

    out: Path = Path("sweep")
    """The folder of the sweep."""

    def run(self, words: Sequence[str]) -> int:
        """Make the runs, the table, the report and the numbers."""
        plan = self._plan(shlex.join(["flatwise", *words]))
        check_workers(self.workers)
        if self.dry_run:
            return _forecast(plan, self.out, self.workers)
        return _show(self.out, plan.carry_out(self.out, self.workers, self.engine))

    def _plan(self, command: str) -> Plan:
        from flatwise.experiments.sweep import Sweep as Plan
        from flatwise.experiments.swept import joined, read_file, read_words

        grids = joined(read_file(self.grid) if self.grid else [], read_words(self.set))
        return Plan(self.method, self.settings, grids, self.seeds, command)


def _show(folder: Path, failures: dict[str, str]) -> int:
    """As a comparison is shown; besides, write the numbers of all runs."""
    from flatwise import report
    from flatwise.cli.compare import show

    code = show(folder, failures)
    print(f"numbers: {', '.join(str(path) for path in report.write_results(folder))}")
    return code


def _forecast(plan: Plan, folder: Path, workers: int | None) -> int:
    """Say what is left to do and what it would take, and return the exit code."""
    from rich.console import Console

    from flatwise.experiments.forecast import foreseen, print_forecast
    from flatwise.processes import cores

    comparison = plan.comparison(folder)
    left = {arm.name: [job for job in comparison.jobs_of(folder, arm) if not job.done()] for arm in comparison.arms}
    runs = {name: len(jobs) for name, jobs in left.items() if jobs}
    total = len(comparison.arms) * plan.seeds
    print(f"{total - sum(runs.values())} of {total} runs are done")
    if runs:
        print_forecast(foreseen(comparison.arms, runs), workers or cores(), Console())
    return 0
