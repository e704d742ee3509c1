"""What is said of a sweep: its best combinations, and that the best of many is partly so by luck."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flatwise.report.quantities import TEST_ACCURACY, TOP_EIGENVALUE, Quantity
from flatwise.report.study import Arm, Study
from flatwise.statistics import Interval, mean_interval

Means = Sequence[tuple[Arm, Interval]]


def sweep_sentences(study: Study) -> list[str]:
    """The highest and the lowest accuracy, and the flattest; nothing where no run has finished."""
    accuracies, tops = (_means(study, quantity) for quantity in (TEST_ACCURACY, TOP_EIGENVALUE))
    found: list[str] = []
    if accuracies:
        best, worst = _extreme(accuracies, max), _extreme(accuracies, min)
        among = f"Of {len(study.arms)} combinations, "
        found.append(f"{among}the highest mean test accuracy is {_told(best, TEST_ACCURACY)}; {_worst(best, worst)}")
    if tops:
        found.append(f"The lowest mean top Hessian eigenvalue is {_told(_extreme(tops, min), TOP_EIGENVALUE)}.")
    return found


def _means(study: Study, quantity: Quantity) -> Means:
    found = [(arm, mean_interval(arm.by_seed(quantity.key).values())) for arm in study.arms]
    return [(arm, interval) for arm, interval in found if interval.n]


def _extreme(found: Means, end: Callable[..., tuple[Arm, Interval]]) -> tuple[Arm, Interval]:
    return end(found, key=lambda one: one[1].mean)


def _told(found: tuple[Arm, Interval], quantity: Quantity) -> str:
    arm, interval = found
    spread = quantity.range(interval)
    note = f"95 % interval {spread} over {interval.n} seeds" if spread else f"{interval.n} seed{'s' * (interval.n > 1)}"
    return f"{quantity.text(interval)} {quantity.unit}".strip() + f" with {arm.label} ({note})"


def _worst(best: tuple[Arm, Interval], worst: tuple[Arm, Interval]) -> str:
    lowest = f"the lowest {_told(worst, TEST_ACCURACY)}. " if worst[0] is not best[0] else ""
    return lowest + "The best of many is partly so by luck: what it is worth, other seeds say."
