"""A run: a folder with the configuration, the environment, metrics as they came, checkpoints, and a mark when it is done."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from flatwise.runs.files import RunWarning, append_line, decode, encode, read_json, read_lines, write_json, write_lines

Ending = Literal["finished", "diverged"]
Status = Literal["finished", "diverged", "unfinished"]

CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS, DONE = (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "done.json",
)


class RunError(ValueError):
    """A folder is not the run that was asked for."""


@dataclass(frozen=True)
class Run:
    """A run folder. Made by `create` or `open`.

    Attributes:
        path: The folder.
        config: The resolved settings as a flat mapping; as read back from JSON, so tuples are lists.
        environment: Versions, machine and command of the process that created the run.
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Start a run in a new or empty folder, or open the run that is there if it has the same configuration.

        Raises:
            RunError: The folder holds another run, or files that are no run. Nothing is overwritten.
        """
        folder = Path(path)
        if (folder / CONFIG).exists():
            return cls.open(folder)._expecting(config)
        _refuse_foreign(folder)
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        # The configuration is what makes the folder a run, so it comes last: a kill in between leaves a folder to start in.
        write_json(folder / ENVIRONMENT, environment)
        write_json(folder / CONFIG, config)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run that exists, running or done.

        Raises:
            RunError: The folder is no run; what is missing or damaged is named.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"there is no run folder {folder}")
        missing = [name for name in (CONFIG, ENVIRONMENT) if not (folder / name).is_file()]
        if missing:
            raise RunError(f"the folder {folder} is no run: it has no {' and no '.join(missing)}")
        return cls(folder, read_mapping(folder / CONFIG), read_mapping(folder / ENVIRONMENT))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record to the metrics; it is on the disk when this returns."""
        append_line(self.path / METRICS, record)

    def metrics(self) -> list[dict[str, Any]]:
        """All records in the order they came. A cut-off or damaged line is skipped with a RunWarning; the rest is read."""
        return read_lines(self.path / METRICS)

    def rewind(self, step: int) -> None:
        """Forget all records later than `step`, and the mark that the run is done: it goes on from there."""
        (self.path / DONE).unlink(missing_ok=True)
        write_lines(self.path / METRICS, (r for r in self.metrics() if r.get("step", 0) <= step))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps belongs; write it with `replacing`."""
        return self.path / CHECKPOINTS / f"step-{step:08d}.pt"

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted((self.path / CHECKPOINTS).glob("step-*.pt"), key=lambda p: (len(p.name), p.name))

    def finish(self, status: Ending, summary: Mapping[str, Any]) -> None:
        """Mark the run as done, with its final numbers."""
        if status not in get_args(Ending):
            raise ValueError(f"a run ends as {' or '.join(get_args(Ending))}, not as {status!r}")
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path / DONE, {"status": status, "ended": ended, "summary": summary})

    @property
    def status(self) -> Status:
        """How the run ended, or "unfinished"."""
        return self._done().get("status", "unfinished")

    @property
    def summary(self) -> dict[str, Any]:
        """The final numbers of a run that is done, else empty."""
        return self._done().get("summary", {})

    def _done(self) -> dict[str, Any]:
        mark = self.path / DONE
        if not mark.exists():
            return {}
        try:
            return _read_mark(mark)
        except RunError as error:
            warnings.warn(f"{error}; the run counts as unfinished", RunWarning, stacklevel=3)
            return {}

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """Where the run's configuration is not this one, in words for each setting."""
        wanted: dict[str, Any] = decode(encode(config))
        names = [*self.config, *(name for name in wanted if name not in self.config)]
        return [d for name in names if (d := _difference(name, self.config, wanted))]

    def _expecting(self, config: Mapping[str, Any]) -> Run:
        if differences := self.differences(config):
            raise RunError(
                f"the folder {self.path} holds another run ({', '.join(differences)}); choose another --out or delete it"
            )
        return self


def _read_mark(path: Path) -> dict[str, Any]:
    """How a run ended and its final numbers; RunError where either is missing."""
    mark = read_mapping(path)
    summary = mark.get("summary")
    if mark.get("status") not in get_args(Ending) or not (isinstance(summary, dict) and summary):
        raise RunError(f"{path} is damaged: it should hold a status, {' or '.join(get_args(Ending))}, and a summary")
    return mark


def _difference(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    was, now = (encode(config[name]) if name in config else "not set" for config in (old, new))
    return "" if was == now else f"{name} was {was}, is {now}"


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder; choose another --out")
    ours = {ENVIRONMENT, CHECKPOINTS}
    left = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in left if name not in ours and not name.endswith(".tmp")]
    if foreign:
        raise RunError(
            f"the folder {folder} holds other files ({', '.join(foreign[:3])}) and no run; choose another --out"
        )


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; RunError where it is damaged."""
    try:
        value = read_json(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged and cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it should hold a mapping, not {type(value).__name__}")
    return value
