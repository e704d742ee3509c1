"""Differences between two arms, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flatwise.report.quantities import Quantity
from flatwise.report.study import Arm, Study
from flatwise.statistics import Interval, holm, mean_interval, paired_difference


@dataclass(frozen=True)
class Difference:
    """`first - second` in one quantity. `values` are per seed, for the seeds where both runs have the number.

    `means` are those of the two arms over the same seeds, so that they agree with the difference. `p` is the p-value of the
    paired t-test, corrected by Holm's method for all differences that are looked at together; NaN without an interval.
    """

    first: Arm
    second: Arm
    quantity: Quantity
    interval: Interval
    values: Sequence[float]
    means: tuple[float, float]
    p: float = math.nan

    @property
    def stands(self) -> bool:
        """Whether the difference is shown also when it is corrected for the number of differences."""
        return self.p <= 1 - self.interval.level

    @property
    def verdict(self) -> str:
        """What the interval allows: "higher", "lower", "unclear", "one seed" or "no data"."""
        return self.interval.verdict


def difference(first: Arm, second: Arm, quantity: Quantity) -> Difference:
    """The difference over the seeds of either arm; a seed that one of them lacks counts as excluded."""
    one, other = first.by_seed(quantity.key), second.by_seed(quantity.key)
    pairs = [(one.get(seed, math.nan), other.get(seed, math.nan)) for seed in dict.fromkeys([*one, *other])]
    both = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    return Difference(
        first,
        second,
        quantity,
        paired_difference([a for a, _ in pairs], [b for _, b in pairs]),
        [a - b for a, b in both],
        (mean_interval(a for a, _ in both).mean, mean_interval(b for _, b in both).mean),
    )


def differences(study: Study, quantity: Quantity) -> list[Difference]:
    """The differences of all named pairs for which there is at least one seed."""
    pairs = [difference(study.arm(a), study.arm(b), quantity) for a, b in study.pairs]
    found = [d for d in pairs if d.interval.n]
    return [replace(d, p=p) for d, p in zip(found, holm([d.interval.p for d in found]), strict=True)]
