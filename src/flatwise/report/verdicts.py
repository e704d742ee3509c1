"""What a claim's numbers decide: an interval over seeds for each criterion, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from flatwise.report.quantities import compact
from flatwise.report.statistics import Interval, mean_interval

Verdict: TypeAlias = Literal["confirmed", "not confirmed", "undecided"]


@dataclass(frozen=True)
class Judged:
    """A criterion with its interval.

    Attributes:
        name: short.
        meaning: in a sentence.
        interval: of the mean over seeds, Student's t.
        wanted: where it must lie, in words.
        verdict: "confirmed" where the whole interval lies there, "not confirmed" where all of it lies outside, else "undecided";
            also where a seed gave no number: those that diverge are no random sample of the seeds.
        power: the smallest distance from a bound that would have been decided, half the interval's width; None with one seed.
        decisive: whether it decides the claim.
        values: one for each seed.
    """

    name: str
    meaning: str
    interval: Interval
    wanted: str
    verdict: Verdict
    power: float | None
    decisive: bool
    values: Sequence[float]

    @property
    def mean(self) -> str:
        """Over seeds."""
        return compact(self.interval.mean)

    @property
    def range(self) -> str:
        """The interval; empty with one seed."""
        low, high = self.interval.low, self.interval.high
        return "" if low is None or high is None else f"{compact(low)} to {compact(high)}"

    @property
    def missing(self) -> str:
        """How many seeds gave no number, in words; empty where all did."""
        number = self.interval.excluded
        return f"{number} {'seed' if number == 1 else 'seeds'} without a number" if number else ""

    @property
    def seeds(self) -> list[str]:
        """The values."""
        return [compact(value) for value in self.values]

    @property
    def distance(self) -> str:
        """The power as text; empty with one seed."""
        return "" if self.power is None else compact(self.power)


def judged(criterion: dict[str, Any]) -> Judged:
    """A criterion as `claim.json` holds it, decided."""
    interval = mean_interval(criterion["values"])
    low, high = interval.low, interval.high
    return Judged(
        name=criterion["name"],
        meaning=criterion["meaning"],
        interval=interval,
        wanted=_wanted(criterion["least"], criterion["most"]),
        verdict=_verdict(interval, criterion["least"], criterion["most"]),
        power=None if low is None or high is None else (high - low) / 2,
        decisive=criterion["decisive"],
        values=criterion["values"],
    )


def verdict_of(criteria: Sequence[Judged]) -> Verdict:
    """The claim's: confirmed if all decisive criteria are, not confirmed if one of them is not, else undecided."""
    verdicts = {c.verdict for c in criteria if c.decisive}
    if "not confirmed" in verdicts:
        return "not confirmed"
    return "confirmed" if verdicts == {"confirmed"} else "undecided"


def _verdict(interval: Interval, least: float | None, most: float | None) -> Verdict:
    if interval.low is None or interval.high is None or interval.degenerate or interval.excluded:
        return "undecided"
    above = least is None or interval.low >= least
    below = most is None or interval.high <= most
    if above and below:
        return "confirmed"
    outside = (least is not None and interval.high < least) or (most is not None and interval.low > most)
    return "not confirmed" if outside else "undecided"


def _wanted(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return (
            f"at least {compact(least)}"
            if least is not None
            else f"at most {compact(most)}"
            if most is not None
            else "any"
        )
    return f"{compact(least)} to {compact(most)}"
