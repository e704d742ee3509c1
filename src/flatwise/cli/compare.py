"""`flatwise compare`: methods times seeds, table, report."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from flatwise.cli.log import Log, mirrors
from flatwise.training.config import Settings


@dataclass(frozen=True)
class Compare:
    """Train methods over seeds on parallel processes, print a table and write a report; the same command continues."""

    methods: tuple[str, ...] = ("sgd", "sam", "eigen-sam")
    """The methods to compare; settings of methods, such as rho and alpha, go to those that have them."""

    seeds: int = 3
    """How many seeds: 0, 1, 2 ..."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)

    equal_norm: bool = True
    """With eigen-sam, add the control: SAM at Eigen-SAM's displacement norm, as measured with the same seed."""

    workers: int | None = None
    """Processes at a time; default: one per core."""

    out: Path | None = None
    """The folder of the comparison; default: runs/compare-HASH, where the hash stands for all settings."""

    log: Log = ()
    """Show the metrics in TensorBoard too (RUN/tensorboard), or in W&B (RUN/wandb, offline without WANDB_MODE), or both."""

    def run(self, words: Sequence[str]) -> int:
        """Make the runs, the table and the report."""
        from flatwise.experiments.arms import arms_of, baseline_of, pairs_of
        from flatwise.experiments.comparison import Comparison, carry_out

        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")
        arms = arms_of(self.methods, self.settings, equal_norm=self.equal_norm)
        baseline, folder = baseline_of(arms), self.out or self._default_folder()
        title = f"{', '.join(arm.label for arm in arms)} on {self.settings.data}"
        command = shlex.join(["flatwise", *words])
        comparison = Comparison(title, arms, range(self.seeds), baseline, pairs_of(arms, baseline), command)
        return show(folder, carry_out({folder: comparison}, self.workers, mirrors(self.log)))

    def _default_folder(self) -> Path:
        settings = json.dumps([self.methods, asdict(self.settings), self.equal_norm], sort_keys=True).encode()
        return Path("runs") / f"compare-{hashlib.sha256(settings).hexdigest()[:8]}"


def show(folder: Path, failures: dict[str, str]) -> int:
    """Print the table of a comparison and what failed, write its report, and return the exit code."""
    from rich.console import Console

    from flatwise import report

    page = report.build(folder)
    report.print_table(folder, Console())
    for name, reason in failures.items():
        print(f"flatwise: {name} failed: {reason}", file=sys.stderr)
    print(f"report: {page}")
    return 1 if failures else 0
