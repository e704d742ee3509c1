"""`flatwise reproduce`: published claims, tried and judged over seeds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flatwise.cli.failures import tell_failures
from flatwise.processes import EngineName, cores

if TYPE_CHECKING:
    from flatwise.experiments.claims.carrying import Trial
    from flatwise.experiments.claims.units import Unit


@dataclass(frozen=True)
class Reproduce:
    """Try published claims over seeds, and say whether they are confirmed at this scale; the same command continues.

    A later command with more seeds adds them to those that are there. OUT/report.html is about all claims, and leads to
    a page for each.
    """

    claims: tyro.conf.Positional[tuple[str, ...]] = ()
    """The claims by name: `flatwise list claims` shows them."""

    all: Annotated[bool, tyro.conf.arg(name="all")] = False
    """All of them."""

    scale: Literal["smoke", "small", "paper"] = "small"
    """small: for two CPU cores; paper: as published, or as large, for claims that have it; smoke: whether it runs, no verdict."""

    seeds: int | None = None
    """How many seeds: 0, 1, 2 ...; default: the claim's."""

    workers: int | None = None
    """Processes at a time; default: one per core."""

    engine: EngineName = "local"
    """Where they run: on this machine, or on a Ray cluster: that of RAY_ADDRESS or of this machine, else one started here."""

    dry_run: bool = False
    """Only say what it would take, from a few steps or the first seconds of a part of each claim; at the scale paper, of claims
    that are made of trainings, GPU hours, counted."""

    out: Path = Path("claims")
    """The folder of all claims."""

    figures: tuple[Literal["pdf", "png"], ...] = ()
    """Draw each claim's figures for a paper as well, in these formats."""

    def run(self, words: Sequence[str]) -> int:
        """Measure, judge, print the verdicts and write the report."""
        trials = self._trials()
        self._tell_omitted()
        if self.dry_run:
            return _forecast(trials, self.workers or cores())
        from flatwise import report
        from flatwise.experiments.claims.carrying import reproduce

        report.check_formats(self.figures)
        files, failures = reproduce(trials, self.workers, shlex.join(["flatwise", *words]), self.engine)
        tell_failures(failures)
        print("\n".join(report.verdict_lines(files)))
        print(f"report: {report.build_claims(self.out, self.figures)}")
        return 1 if failures else 0

    def _tell_omitted(self) -> None:
        from flatwise.experiments.claims.listed import CLAIMS

        omitted = [claim.name for claim in CLAIMS.values() if self.scale not in claim.scales]
        if self.all and omitted:
            print(f"left out, as they have no scale {self.scale!r}: {', '.join(omitted)}")

    def _trials(self) -> list[Trial]:
        from flatwise.experiments.claims.carrying import Trial
        from flatwise.experiments.claims.listed import CLAIMS, claim_by_name

        for number, name in ((self.seeds, "seeds"), (self.workers, "workers")):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        if bool(self.claims) == self.all:
            raise ValueError("name the claims to reproduce, or say --all; `flatwise list claims` shows them")
        named = [claim_by_name(name) for name in dict.fromkeys(self.claims)]
        chosen = named or [claim for claim in CLAIMS.values() if self.scale in claim.scales]
        for claim in chosen:
            claim.preset(self.scale)
        return [Trial(claim, self.scale, self.seeds or claim.seeds[self.scale], self.out) for claim in chosen]


def _forecast(trials: Sequence[Trial], workers: int) -> int:
    """Say what each claim takes: counted, or going by a few steps or the first seconds of a part; one that fails says why."""
    from flatwise.experiments.claims.carrying import check

    check(trials)
    counted = [trial for trial in trials if trial.scale == "paper" and trial.claim.trainings is not None]
    if counted:
        from flatwise.experiments.claims.gpu_hours import lines

        print("\n".join(lines(counted)))
    found, known = list[float | None](), set[Path]()
    for trial in (tried := [trial for trial in trials if trial not in counted]):
        missing = [
            unit for unit in trial.units() if not unit.done() and unit.place not in known
        ]  # claims may share them
        found.append(_forecast_one(trial.claim.name, missing, workers))
        known.update(unit.place for unit in missing if found[-1] is not None)
    if tried:
        print(f"in sum {_long(sum(filter(None, found)), workers)}; nothing was kept")
    return 1 if None in found else 0


def _forecast_one(name: str, missing: Sequence[Unit], workers: int) -> float | None:
    """Say what the missing parts of a claim take, in seconds; None where they fail, which must not hide what the others cost."""
    try:
        seconds = _seconds(missing)
    except Exception as error:
        print(f"{name}: {len(missing)} parts to measure, which fail: {error or repr(error)}", flush=True)
        return None
    print(f"{name}: {len(missing)} parts to measure, {_long(seconds, workers)}", flush=True)
    return seconds


def _long(seconds: float, workers: int) -> str:
    from flatwise.training.progress import duration

    return f"{duration(seconds)} of work, {duration(seconds / workers)} on {workers} processes"


def _seconds(missing: Sequence[Unit]) -> float:
    """Of work, going by one part of each cell: cells may be of different kinds."""
    cells = {unit.cell: unit for unit in reversed(missing)}
    taken = {cell: unit.seconds(max(2.0, 8.0 / len(cells))) for cell, unit in cells.items()}
    return sum(taken[unit.cell] for unit in missing)
