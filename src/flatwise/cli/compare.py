"""`flatwise compare`: methods times seeds, table, report."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flatwise.cli.failures import tell_diverged, tell_failures, tell_left_out
from flatwise.cli.log import Log, mirrors
from flatwise.processes import EngineName
from flatwise.training.config import Settings

if TYPE_CHECKING:
    from flatwise.experiments.plan import Plan


@dataclass(frozen=True)
class Compare:
    """Train methods over seeds on parallel processes, print a table and write a report; the same command continues.

    Runs that failed or diverged are named on standard error. The exit code is 1 where one failed, or none has finished.
    """

    methods: tuple[str, ...] = ("sgd", "sam", "eigen-sam")
    """The methods to compare, by name or as module:Class of your own, or all; settings such as rho go to those that have them."""

    seeds: int = 3
    """How many seeds: 0, 1, 2 ..."""

    equal: Annotated[tuple[Literal["steps", "evaluations"], ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Compare at equal steps, at equal gradient evaluations (2 for a step, SAM's), or both; default: steps, or --evaluations.
    At equal steps SAM has twice the compute of SGD; the report says so."""

    tune: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES [...]", help_behavior_hint="")] = ()
    """Choose hyper-parameters on a validation split first: rho=0.05,0.1, or multiples of each method's own: rho=x0.5,x1,x2."""

    tune_seeds: int = 2
    """Seeds of each tuning run: 1000, 1001 ... With --tune, these runs alone hold out --validation, 0.1 unless given."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)

    equal_norm: bool = True
    """With eigen-sam, add the control: SAM at Eigen-SAM's displacement norm, as measured with the same seed."""

    workers: int | None = None
    """Processes at a time; default: one per core."""

    engine: EngineName = "local"
    """Where they run: on this machine, or on a Ray cluster: that of RAY_ADDRESS or of this machine, else one started here."""

    dry_run: bool = False
    """Only say what it would take: runs, steps, evaluations, and the time, from a few steps of each method."""

    out: Path | None = None
    """The folder of the comparison; default: runs/compare-HASH, where the hash stands for all settings."""

    log: Log = ()
    """Show the metrics in TensorBoard too (RUN/tensorboard), or in W&B (RUN/wandb, offline without WANDB_MODE), or both."""

    def run(self, words: Sequence[str]) -> int:
        """Make the runs, the table and the report."""
        plan = self._plan(shlex.join(["flatwise", *words]))
        check_workers(self.workers)
        folder = self.out or self._default_folder()
        if self.dry_run:
            return forecast(plan, folder, self.workers)
        tell_left_out(folder, plan.sections(folder)[folder])
        return show(folder, plan.carry_out(folder, self.workers, mirrors(self.log), self.engine))

    def _plan(self, command: str) -> Plan:
        from flatwise import methods
        from flatwise.experiments.plan import Plan

        return Plan(
            methods=methods.names() if self.methods == ("all",) else self.methods,
            settings=self.settings,
            seeds=self.seeds,
            command=command,
            equal=self.equal or (("evaluations",) if self.settings.evaluations else ("steps",)),
            tune=self.tune,
            tune_seeds=self.tune_seeds,
            equal_norm=self.equal_norm,
        )

    def _default_folder(self) -> Path:
        chosen = [self.methods, asdict(self.settings), self.equal_norm]
        more = [self.equal, self.tune, self.tune_seeds] if self.equal or self.tune else []
        settings = json.dumps(chosen + more, sort_keys=True).encode()
        return Path("runs") / f"compare-{hashlib.sha256(settings).hexdigest()[:8]}"


def check_workers(workers: int | None) -> None:
    """Refuse a number of processes that is none."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")


def forecast(plan: Plan, folder: Path, workers: int | None) -> int:
    """Print what a comparison would take, and return the exit code."""
    from rich.console import Console

    from flatwise.experiments.forecast import expected, print_forecast
    from flatwise.processes import cores

    print_forecast(expected(plan, folder), workers or cores(), Console())
    return 0


def show(folder: Path, failures: dict[str, str]) -> int:
    """Print the table of a comparison and what failed or diverged, write its report, and return the exit code.

    That is 1 where a run failed, or none has finished; a comparison of others with one that diverged is a result.
    """
    from rich.console import Console

    from flatwise import report

    tell_failures(failures)
    page = report.build(folder)
    report.print_table(folder, Console())
    print(f"report: {page}")
    any_finished = tell_diverged(folder)
    return 1 if failures or not any_finished else 0
