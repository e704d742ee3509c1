"""A run to make, as a job for `flatwise.processes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.runs import Run
from flatwise.training import TrainConfig, resolved
from flatwise.training.mirrors import Mirrors

SERVER = "flatwise.experiments.worker"


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        name: what it is called in messages.
        folder: its run folder.
        config: its settings, asked for when it starts.
        after: folders of the runs that must be done before.
        weight: its share in the work, for the estimate of the remaining time.
        mirrors: names of the mirrors that it is shown in.
    """

    name: str
    folder: Path
    config: Callable[[], TrainConfig]
    after: Sequence[Path] = ()
    weight: float = 1.0
    mirrors: Sequence[str] = ()

    @property
    def place(self) -> Path:
        """The run folder."""
        return self.folder

    def done(self) -> bool:
        """Whether the run is there already, and in its mirrors.

        Raises:
            RunError: the folder holds another run.
            ValueError: a mirror cannot be had.
        """
        mirrors = Mirrors(self.mirrors)
        if not (self.folder / "config.json").exists():
            return False
        run = Run.create(self.folder, resolved(self.config()).to_dict(), {})
        return run.status != "unfinished" and mirrors.know(run)

    def order(self) -> dict[str, Any]:
        """What the process is told."""
        return {"config": self.config().to_dict(), "folder": str(self.folder), "mirrors": list(self.mirrors)}
