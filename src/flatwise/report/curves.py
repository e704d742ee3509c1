"""Curves over training: the mean over seeds with its interval, at the steps that all finished runs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatwise.report.study import Arm, Study, Trial, number
from flatwise.statistics import Interval, geometric_interval, mean_interval


@dataclass(frozen=True)
class Point:
    """One place on a curve."""

    x: float
    y: Interval


@dataclass(frozen=True)
class Broken:
    """A run that did not finish, as far as it came."""

    trial: Trial
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One arm in one quantity: the finished runs as points with intervals, the others one by one."""

    arm: Arm
    key: str
    points: Sequence[Point]
    broken: Sequence[Broken]

    @property
    def values(self) -> list[float]:
        """All finite means and ends of runs, for the choice of an axis."""
        single = [y for run in self.broken for _, y in run.points]
        return [y for y in [*(point.y.mean for point in self.points), *single] if math.isfinite(y)]


def curve(arm: Arm, key: str, axis: str, *, log: bool = False) -> Curve:
    """The curve of a probe's quantity over `axis`, "epoch" or "step".

    With `log` the mean is the geometric one, so that its interval stays positive.
    """
    series = [_by_step(trial, key, axis) for trial in arm.finished]
    steps = [step for step in series[0] if all(step in other for other in series)] if series else []
    average = geometric_interval if log else mean_interval
    points = [Point(series[0][step][0], average(one[step][1] for one in series)) for step in steps]
    others = [trial for trial in arm.trials if trial.status in ("diverged", "unfinished")]
    broken = [Broken(trial, _finite(_by_step(trial, key, axis))) for trial in others]
    return Curve(arm, key, points, [run for run in broken if run.points])


def curves(arms: Sequence[Arm], key: str, axis: str, *, log: bool = False) -> list[Curve]:
    """The curves of all arms in which the quantity was measured."""
    found = [curve(arm, key, axis, log=log) for arm in arms]
    return [one for one in found if one.values]


def axis_of(study: Study) -> str:
    """ "epoch" for a comparison in which every probe has one, else "step"."""
    probes = [probe for trial in study.trials for probe in trial.probes]
    epochs = study.kind != "edge" and all(math.isfinite(number(probe, "epoch")) for probe in probes)
    return "epoch" if epochs else "step"


def wants_log(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis helps: all values positive, and more than a factor of eight between them."""
    return bool(values) and min(values) > 0 and max(values) > 8 * min(values)


def _by_step(trial: Trial, key: str, axis: str) -> dict[float, tuple[float, float]]:
    probes = [probe for probe in trial.probes if key in probe]
    return {number(probe, "step"): (number(probe, axis), number(probe, key)) for probe in probes}


def _finite(series: dict[float, tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in series.values() if math.isfinite(x) and math.isfinite(y)]
