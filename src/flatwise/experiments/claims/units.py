"""The parts of a claim's experiment: each a job of its own, whose file is there when it is done."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flatwise.experiments.claims.claim import Claim, Values, plain
from flatwise.experiments.claims.durations import SECONDS
from flatwise.processes import EngineName, Pool
from flatwise.runs import RunError, read_mapping
from flatwise.training.progress import line

SERVER = "flatwise.experiments.claims.worker"


@dataclass(frozen=True)
class Unit:
    """One cell of a claim with one seed.

    Attributes:
        claim: whose.
        scale: at which.
        cell: the number of the cell.
        seed: the seed.
        folder: of the claim at this scale.
        command: the command line that wants it.
        after: nothing has to be done before.
    """

    claim: Claim
    scale: str
    cell: int
    seed: int
    folder: Path
    command: str = ""
    after: Sequence[Path] = ()

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.claim.name}, cell {self.cell}, seed {self.seed}"

    @property
    def place(self) -> Path:
        """The file that its numbers go into."""
        return self.folder / f"seed-{self.seed}" / f"cell-{self.cell}.json"

    @property
    def weight(self) -> float:
        """Its share in the work: all of a claim are alike."""
        return SECONDS.get(self.claim.experiment or self.claim.name, 60.0)

    def settings(self) -> Values:
        """What its numbers hang on."""
        preset = self.claim.preset(self.scale)
        return {"preset": preset, "cell": self.claim.cells(preset)[self.cell], "seed": self.seed}

    def done(self) -> bool:
        """Whether its numbers are there.

        Raises:
            RunError: the file holds those of other settings.
        """
        if not self.place.exists():
            return False
        known = read_mapping(self.place)
        if known.get("settings") != plain(self.settings()):
            raise RunError(
                f"{self.place} was measured with other settings of {self.claim.name} than this flatwise has; choose another "
                f"folder (--out), or delete {self.folder}"
            )
        return True

    def measured(self) -> Values:
        """Its numbers."""
        return cast(Values, read_mapping(self.place)["measured"])

    def order(self) -> dict[str, Any]:
        """What the process is told."""
        return {
            "claim": self.claim.name,
            "place": str(self.place),
            "command": self.command,
            **plain(self.settings()),
        }

    def seconds(self, patience: float = 8.0) -> float:
        """How long it will take on one thread, going by a few steps or the first seconds of it; what they make is thrown away."""
        with _one_thread():
            if self.claim.trainings is None:
                return self._from_beginning(patience)
            from flatwise.experiments.forecast import seconds_of

            settings = self.settings()
            return seconds_of(self.claim.trainings(settings["preset"], settings["cell"]))

    def _from_beginning(self, patience: float) -> float:
        settings, watch = self.settings(), _Watch(patience)
        with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
            self.claim.measure(settings["preset"], settings["cell"], self.seed, Path(folder) / "trial", watch)
            return watch.taken
        return watch.forecast


@contextmanager
def _one_thread() -> Generator[None]:
    """As in the processes that measure."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Enough(Exception):
    """A trial has shown how fast it goes."""


class _Watch:
    """Stops what it is told about after some seconds. What comes before the first word is done once."""

    def __init__(self, patience: float) -> None:
        self._patience, self._began = patience, time.perf_counter()
        self._first: tuple[float, int] | None = None
        self.forecast = 0.0

    @property
    def taken(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def __call__(self, done: int, total: int) -> None:
        before, start = self._first = self._first or (self.taken, done)
        if done > start and self.taken - before > self._patience:
            self.forecast = before + (self.taken - before) * (total - start) / (done - start)
            raise _Enough


def units_of(claim: Claim, scale: str, seeds: int, folder: Path, command: str = "") -> list[Unit]:
    """All parts, seed by seed."""
    return [unit for seed in range(seeds) for unit in units_of_seed(claim, scale, seed, folder, command)]


def units_of_seed(claim: Claim, scale: str, seed: int, folder: Path, command: str = "") -> list[Unit]:
    """The parts of one seed."""
    cells = range(len(claim.cells(claim.preset(scale))))
    return [Unit(claim, scale, cell, seed, folder, command) for cell in cells]


def carry_out(units: Sequence[Unit], workers: int | None, log: Path, engine: EngineName = "local") -> dict[str, str]:
    """Measure on parallel processes; what is there already is kept, and what fails does not stop the rest.

    Returns:
        What failed: name and reason.

    Raises:
        RunError: a file holds the numbers of other settings.
        KeyboardInterrupt: after Ctrl-C; what was measured is kept, and the same call goes on from there.
    """
    with line() as show:
        number = len(units)
        progress: Callable[[float, int], None] = lambda share, done: show(share, 1.0, f"{done} of {number} parts")
        return Pool(units, SERVER, workers, log, progress, engine).run()
