"""What a claim's numbers decide: an interval over seeds for each criterion, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from flatwise.report.quantities import compact
from flatwise.statistics import Interval, mean_interval

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
            also where a seed gave no number: those that diverge are no random sample of the seeds. An exact number lies
            there or outside.
        power: the smallest distance from a bound that would have been decided, half the interval's width; None without a bound,
            and where no distance would have been: one seed, equal values, or a seed without a number.
        decisive: whether it decides the claim.
        values: one for each seed.
        places: of the seeds that gave them, among the complete ones; None: all.
    """

    name: str
    meaning: str
    interval: Interval
    wanted: str
    verdict: Verdict
    power: float | None
    decisive: bool
    values: Sequence[float]
    places: Sequence[int] | None = None

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
    def counted(self) -> str:
        """Of how many seeds it is and how many gave no number, in words; empty where all did."""
        number = self.interval.excluded
        own = "" if self.places is None else f"of {len(self.values)} of the seeds"
        missing = f"{number} {'seed' if number == 1 else 'seeds'} without a number" if number else ""
        return ", ".join(filter(None, (own, missing)))

    def at(self, place: int) -> float | None:
        """The value of the seed at a place; None where it gave none."""
        places = range(len(self.values)) if self.places is None else self.places
        return dict(zip(places, self.values, strict=True)).get(place)

    def shown(self, place: int) -> str:
        """The same as text."""
        return "" if (value := self.at(place)) is None else compact(value)

    @property
    def distance(self) -> str:
        """The power as text; empty without one."""
        return "" if self.power is None else compact(self.power)


def judged(criterion: dict[str, Any]) -> Judged:
    """A criterion as `claim.json` holds it, decided."""
    interval = mean_interval(criterion["values"])
    exact = criterion.get("exact", False) and len(set(criterion["values"])) == 1
    is_bounded = criterion["least"] is not None or criterion["most"] is not None
    is_decidable = is_bounded and not (interval.degenerate or interval.excluded)
    low, high = (None, None) if exact else (interval.low, interval.high)
    return Judged(
        name=criterion["name"],
        meaning=criterion["meaning"],
        interval=Interval(interval.mean, low, high, interval.n, interval.excluded),
        wanted=_wanted(criterion["least"], criterion["most"]),
        verdict=_verdict(interval, criterion["least"], criterion["most"], exact),
        power=None if low is None or high is None or not is_decidable else (high - low) / 2,
        decisive=criterion["decisive"],
        values=criterion["values"],
        places=criterion.get("seeds"),
    )


def verdict_of(criteria: Sequence[Judged]) -> Verdict:
    """The claim's: confirmed if all decisive criteria are, not confirmed if one of them is not, else undecided."""
    verdicts = {c.verdict for c in criteria if c.decisive}
    if "not confirmed" in verdicts:
        return "not confirmed"
    return "confirmed" if verdicts == {"confirmed"} else "undecided"


def _verdict(interval: Interval, least: float | None, most: float | None, exact: bool) -> Verdict:
    low, high = (interval.mean, interval.mean) if exact else (interval.low, interval.high)
    if low is None or high is None or interval.excluded or (interval.degenerate and not exact):
        return "undecided"
    if (least is None or low >= least) and (most is None or high <= most):
        return "confirmed"
    outside = (least is not None and high < least) or (most is not None and low > most)
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
