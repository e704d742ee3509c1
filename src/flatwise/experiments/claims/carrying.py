"""A claim carried out: its parts measured, and what they say written into one file that the report reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flatwise.experiments.claims.claim import Claim, Values
from flatwise.experiments.claims.units import Unit, carry_out, units_of
from flatwise.runs import environment, write_json

FILE = "claim.json"


@dataclass(frozen=True)
class Trial:
    """A claim at a scale with so many seeds, in a folder.

    Attributes:
        claim: the claim.
        scale: at which its experiment is made.
        seeds: how many: 0, 1, 2 ...
        out: the folder of all claims.
    """

    claim: Claim
    scale: str
    seeds: int
    out: Path

    @property
    def folder(self) -> Path:
        """Where its numbers lie."""
        return self.out / (self.claim.experiment or self.claim.name) / self.scale

    @property
    def file(self) -> Path:
        """Where it is written what they say."""
        return self.out / self.claim.name / self.scale / FILE

    def units(self, command: str = "") -> list[Unit]:
        """Its parts."""
        return units_of(self.claim, self.scale, self.seeds, self.folder, command)

    def conclude(self, command: str) -> Path:
        """Write down what the seeds say that are complete, those of earlier calls too; returns the file.

        Raises:
            ValueError: no seed is complete.
        """
        complete = self._complete()
        if not complete:
            raise ValueError(f"no seed of {self.claim.name} is complete yet; see {self.out / 'log.txt'}")
        preset = self.claim.preset(self.scale)
        outcome = self.claim.judge(preset, [cells for _, cells in complete])
        about: Values = {name: getattr(self.claim, name) for name in ("name", "statement", "source", "protocol")}
        about |= {"scale": self.scale, "preset": preset, "seeds": [seed for seed, _ in complete], "command": command}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, about | {"environment": environment(command)} | asdict(outcome))
        return self.file

    def _complete(self) -> list[tuple[int, list[Values]]]:
        """The measured values of all cells, for each seed that has them all."""
        number = len(self.claim.cells(self.claim.preset(self.scale)))
        known = [int(folder.name.removeprefix("seed-")) for folder in self.folder.glob("seed-*") if folder.is_dir()]
        found: list[tuple[int, list[Values]]] = []
        for seed in sorted(known):
            units = [Unit(self.claim, self.scale, cell, seed, self.folder) for cell in range(number)]
            if all(unit.done() for unit in units):
                found.append((seed, [unit.measured() for unit in units]))
        return found


def reproduce(trials: Sequence[Trial], workers: int, command: str) -> tuple[list[Path], dict[str, str]]:
    """Measure what is missing of some claims, and write down what they say.

    Returns:
        The files of the claims, and what failed: name and reason.

    Raises:
        RunError: a folder holds the numbers of other settings; nothing is changed then.
        KeyboardInterrupt: after Ctrl-C; what was measured is kept, and the same call goes on from there.
    """
    units = {unit.place: unit for trial in trials for unit in trial.units(command)}  # claims may share them
    failures = carry_out(list(units.values()), workers, trials[0].out / "log.txt")
    files: list[Path] = []
    for trial in trials:
        try:
            files.append(trial.conclude(command))
        except ValueError as error:
            failures[trial.claim.name] = str(error)
    return files, failures
