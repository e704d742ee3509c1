"""A claim carried out: its parts measured, and what they say written into one file that the report reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flatwise.experiments.claims.claim import Claim, Outcome, Values
from flatwise.experiments.claims.units import Unit, carry_out, units_of, units_of_seed
from flatwise.processes import EngineName
from flatwise.runs import RunError, read_mapping, write_json

FILE, ASKED = "claim.json", "asked.json"


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

    def check(self) -> None:
        """Read all parts of it that are finished, of more seeds than these too.

        Raises:
            RunError: it holds the numbers of other settings, or is damaged.
        """
        self._asked()
        for _, units in self._known():
            for unit in units:
                unit.done()

    def conclude(self, command: str, failures: Mapping[str, str] | None = None) -> Path:
        """Write down what the seeds say that are complete, those of earlier calls too; returns the file.

        It is written without a complete seed as well: then it says that there is none. A seed that was once begun or asked
        for belongs to the sample: without it nothing is decided, also where fewer seeds are asked for later.

        Args:
            command: the command line that measures this.
            failures: the parts that could not be measured, each with the reason.
        """
        failed, complete, preset = dict(failures or {}), self._complete(), self.claim.preset(self.scale)
        outcome = Outcome([])
        if complete:
            try:
                outcome = self.claim.judge(preset, [[unit.measured() for unit in units] for _, units in complete])
            except Exception as error:  # one claim that cannot be judged must not cost the report of the others
                failed["judging"] = repr(error)
        about: Values = {name: getattr(self.claim, name) for name in ("name", "statement", "source", "protocol")}
        about |= {"scale": self.scale, "preset": preset, "seeds": [seed for seed, _ in complete], "command": command}
        about |= {"asked": self._ask(), "failures": failed}
        about |= {"environments": _environments([unit for _, units in complete for unit in units])}
        write_json(self.file, about | asdict(outcome))
        return self.file

    def _ask(self) -> int:
        """How many seeds this call or an earlier one asked for; it is remembered beside the numbers, and goes with them."""
        asked = max([self.seeds, self._asked(), *(seed + 1 for seed, _ in self._known())])
        write_json(self.folder / ASKED, {"seeds": asked})
        return asked

    def _asked(self) -> int:
        place = self.folder / ASKED
        return read_mapping(place)["seeds"] if place.exists() else 0

    def _complete(self) -> list[tuple[int, list[Unit]]]:
        """The measured parts of each seed that has them all."""
        return [(seed, units) for seed, units in self._known() if all(unit.done() for unit in units)]

    def _known(self) -> list[tuple[int, list[Unit]]]:
        """The parts of each seed that was begun."""
        known = [int(folder.name.removeprefix("seed-")) for folder in self.folder.glob("seed-*") if folder.is_dir()]
        return [(seed, units_of_seed(self.claim, self.scale, seed, self.folder)) for seed in sorted(known)]


def reproduce(
    trials: Sequence[Trial], workers: int | None, command: str, engine: EngineName = "local"
) -> tuple[list[Path], dict[str, str]]:
    """Measure what is missing of some claims, and write down what they say.

    Returns:
        The files of the claims, and what failed: name and reason.

    Raises:
        RunError: finished parts are of other settings, or damaged; nothing is changed then.
        KeyboardInterrupt: after Ctrl-C; what was measured is kept, and the same call goes on from there.
    """
    check(trials)
    units = {unit.place: unit for trial in trials for unit in trial.units(command)}  # claims may share them
    for trial in trials:  # whatever ends this call, what is there says what is missing
        trial.conclude(command)
    failures = carry_out(list(units.values()), workers, trials[0].out / "log.txt", engine)
    files: list[Path] = []
    for trial in trials:
        own = {units[unit.place].name for unit in trial.units()}
        files.append(trial.conclude(command, {name: why for name, why in failures.items() if name in own}))
    return files, failures


def check(trials: Sequence[Trial]) -> None:
    """Have all that is wrong with what is there told at once.

    Raises:
        RunError: as `Trial.check`.
    """
    complaints: list[str] = []
    for trial in trials:
        try:
            trial.check()
        except RunError as error:
            complaints.append(str(error))
    if complaints:
        raise RunError("\n".join(dict.fromkeys(complaints)))


def _environments(units: Sequence[Unit]) -> list[dict[str, Any]]:
    """On what they were measured, each kind of machine and software once."""
    found: list[dict[str, Any]] = [read_mapping(unit.place).get("environment", {}) for unit in units]
    kinds = [{name: value for name, value in one.items() if name not in ("command", "started")} for one in found]
    return [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]
