"""Means, intervals and paired differences over seeds, on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided Student t interval.

    `low` and `high` are None when fewer than two values count. `mean` is NaN when none does. `n` values count; `excluded`
    were not finite and do not: whoever shows the mean says so next to it.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    excluded: int = 0
    level: float = 0.95

    @property
    def degenerate(self) -> bool:
        """Whether several values agree exactly, as shares of few samples may by chance: they tell nothing of their spread."""
        return self.low is not None and self.high is not None and self.high - self.low <= 1e-9 * abs(self.mean)

    @property
    def verdict(self) -> str:
        """For a difference: "higher" or "lower" when the interval leaves out zero, else "unclear".

        An interval of no width shows nothing. Without an interval: "one seed" or "no data".
        """
        if self.low is None or self.high is None:
            return "one seed" if self.n else "no data"
        if self.degenerate:
            return "unclear"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "unclear"

    @property
    def p(self) -> float:
        """The p-value of the two-sided t-test that the mean is zero; 1 where the values do not differ, NaN for fewer than two."""
        if self.low is None or self.high is None:
            return math.nan
        if self.degenerate:
            return 1.0
        error = (self.high - self.low) / 2 / t_quantile(0.5 + self.level / 2, self.n - 1)
        return 1 - _probability_within(math.atan(abs(self.mean) / error / math.sqrt(self.n - 1)), self.n - 1)

    def negated(self) -> Interval:
        """The interval of the difference taken the other way round."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Interval(-self.mean, low, high, self.n, self.excluded, self.level)

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval with an increasing function applied to its mean and its ends."""
        low, high = (None if end is None else function(end) for end in (self.low, self.high))
        return Interval(function(self.mean), low, high, self.n, self.excluded, self.level)


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """The mean of the finite values and its interval, from the sample standard deviation and Student's t.

    Args:
        values: one number per seed; NaN and infinity are left out and counted.
        level: the coverage, in (0, 1).
    """
    everything = list(values)
    finite = [value for value in everything if math.isfinite(value)]
    n, excluded = len(finite), len(everything) - len(finite)
    if n == 0:
        return Interval(math.nan, None, None, 0, excluded, level)
    mean = math.fsum(finite) / n
    if n == 1:
        return Interval(mean, None, None, 1, excluded, level)
    half = t_quantile(0.5 + level / 2, n - 1) * _deviation(finite, mean) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, excluded, level)


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of `a - b` over seeds, with its interval.

    Args:
        a: one number per seed.
        b: the same, for the same seeds in the same order; a seed where either is not finite is left out and counted.
        level: the coverage, in (0, 1).
    """
    if len(a) != len(b):
        raise ValueError(f"paired values must come in pairs, got {len(a)} and {len(b)}; give NaN where one is missing")
    return mean_interval([x - y for x, y in zip(a, b)], level)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method: judging by them, the chance of any false finding stays at the level.

    Args:
        values: p-values of one family of tests; NaN, where there was no test, stays NaN and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(values), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def geometric_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """The geometric mean and its interval, for positive quantities on a logarithmic axis; others count as not finite."""
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return mean_interval(logs, level).map(math.exp)


def median(values: Iterable[float]) -> float:
    """The median of the finite values; NaN when there is none."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with a whole number of degrees of freedom, for a probability in [0.5, 1).

    Found by bisection of the angle in the closed form of the distribution function, so that no SciPy is needed.
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"the probability must be in [0.5, 1), got {probability}")
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability_within(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) * tan(angle)): a finite trigonometric sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series


def _deviation(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
