"""Networks to measure, each a job of its own, whose file is there when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.measurements.checkpoints import Checkpoint
from flatwise.measurements.functions import Own
from flatwise.measurements.plan import Plan
from flatwise.measurements.subject import Source
from flatwise.processes import Pool
from flatwise.runs import RunError, read_mapping
from flatwise.training.progress import line

SERVER = "flatwise.measurements.worker"
KINDS: dict[str, type[Checkpoint] | type[Own]] = {"run": Checkpoint, "function": Own}


@dataclass(frozen=True)
class Unit:
    """One network to measure.

    Attributes:
        source: where it comes from.
        plan: what is measured of it.
        place: the file that the numbers go into.
        threads: of torch, while it is measured.
        command: the command line that wants it.
        after: nothing has to be done before.
        weight: all are alike.
    """

    source: Source
    plan: Plan
    place: Path
    threads: int = 1
    command: str = ""
    after: Sequence[Path] = ()
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.source.label

    def done(self) -> bool:
        """Whether it has been measured."""
        return bool(kept(self.place).get("complete"))

    def order(self) -> dict[str, Any]:
        """What the process is told."""
        return {
            "source": self.source.to_dict(),
            "plan": self.plan.to_dict(),
            "place": str(self.place),
            "threads": self.threads,
            "command": self.command,
        }


def source_from(values: dict[str, Any]) -> Source:
    """The inverse of `Source.to_dict`."""
    return KINDS[values["kind"]](**{name: value for name, value in values.items() if name != "kind"})


def kept(place: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none, or where it is damaged and has to be written anew."""
    with suppress(RunError, FileNotFoundError):
        return read_mapping(place)
    return {}


def carry_out(units: Sequence[Unit], workers: int, log: Path) -> dict[str, str]:
    """Measure on parallel processes; what is there already is kept, and what fails does not stop the rest.

    Returns:
        What failed: name and reason.

    Raises:
        KeyboardInterrupt: after Ctrl-C; what was measured is kept, and the same call goes on from there.
    """
    with line() as show:
        number = len(units)
        pool = Pool(units, SERVER, workers, log, lambda share, done: show(share, 1.0, f"{done} of {number} networks"))
        return pool.run()
