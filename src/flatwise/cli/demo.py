"""`flatwise demo`: the main job on data that comes with the installation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """Show what SAM, Eigen-SAM and Reverse-SAM do on real images, in about two minutes on two cores; leaves a report."""

    seeds: int = 5
    """How many seeds: 0, 1, 2 ..."""

    workers: int | None = None
    """Processes at a time; default: one per core."""

    out: Path = Path("demo")
    """The folder of the demonstration; results that are in it already are kept."""

    def run(self, words: Sequence[str]) -> int:
        """Make the runs, the table and the report."""
        del words
        from flatwise.cli.compare import show
        from flatwise.experiments.demo import demonstrate

        return show(self.out, demonstrate(self.out, self.seeds, self.workers))
