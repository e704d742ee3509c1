"""`flatwise demo`: the main job on data that comes with the installation."""

from __future__ import annotations

import itertools
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
        """Make the runs, the table and the report. Results of an older version's settings are set aside, not lost."""
        del words
        from flatwise.cli.compare import show
        from flatwise.experiments.demo import demonstrate
        from flatwise.runs import RunError

        try:
            failures = demonstrate(self.out, self.seeds, self.workers)
        except RunError:
            if not _is_demonstration(self.out):
                raise
            print(f"{self.out} holds a demonstration with other settings; it is now {_set_aside(self.out)}")
            failures = demonstrate(self.out, self.seeds, self.workers)
        return show(self.out, failures)


def _is_demonstration(folder: Path) -> bool:
    from flatwise.runs import read_json

    described = folder / "comparison.json"
    return described.is_file() and str(read_json(described).get("command", "")).startswith("flatwise demo")


def _set_aside(folder: Path) -> Path:
    numbered = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    return folder.rename(next(path for path in numbered if not path.exists()))
