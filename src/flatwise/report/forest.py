"""Differences with their intervals against zero, as shares of a common width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flatwise.report.differences import Difference
from flatwise.statistics import median


@dataclass(frozen=True)
class Mark:
    """Places along a track, in percent of its width; `low` and `high` are None without an interval."""

    zero: float
    mean: float
    low: float | None
    high: float | None
    seeds: Sequence[float]


FAR = 6
"""What reaches so many times as far as most do is left out of the scale, and drawn at its border."""


def forest(differences: Sequence[Difference]) -> list[Mark]:
    """One mark for each difference, all on the same scale, which holds zero and everything drawn but a few that lie far out."""
    reaches = [max((abs(value) for value in _drawn(d)), default=0.0) for d in differences]
    limit = FAR * median(reaches) or max(reaches, default=0.0)
    ends = [value for d, reach in zip(differences, reaches) if reach <= limit for value in _drawn(d)] + [0.0]
    least, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(min(99.0, max(1.0, 4 + 92 * (value - least) / width)), 2)

    return [_mark(d, place) for d in differences]


def _mark(d: Difference, place: Callable[[float], float]) -> Mark:
    low, high = (None if end is None else place(end) for end in (d.interval.low, d.interval.high))
    return Mark(place(0.0), place(d.interval.mean), low, high, [place(value) for value in d.values])


def _drawn(d: Difference) -> list[float]:
    return [*d.values, *(end for end in (d.interval.low, d.interval.high) if end is not None)]
