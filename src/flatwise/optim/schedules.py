"""Schedules of rho: a factor on every group's rho, from the number of steps taken and the learning rate.

They have no memory. The number of steps is in the optimizer's checkpoint, so a resumed run goes on where it was.
Any function of the two, `(step, lr) -> factor >= 0`, serves as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias

from flatwise.methods.checks import non_negative, positive_integer

RhoSchedule: TypeAlias = Callable[[int, float], float]


@dataclass(frozen=True)
class _Ramp:
    """From one factor to another over a number of steps."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        non_negative("start", self.start)
        non_negative("end", self.end)
        positive_integer("steps", self.steps)

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * share

    def _progress(self, step: int) -> float:
        return min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """From `start` to `end` in a straight line over `steps` steps, then constant.

    Args:
        start: the factor at step 0; >= 0.
        end: the factor from step `steps` on; >= 0.
        steps: steps of the base optimizer in between; >= 1.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    def __call__(self, step: int, lr: float) -> float:
        """The factor at a step."""
        del lr
        return self._between(self._progress(step))


@dataclass(frozen=True)
class Cosine(_Ramp):
    """From `start` to `end` along half a cosine over `steps` steps, then constant.

    Args:
        start: the factor at step 0; >= 0.
        end: the factor from step `steps` on; >= 0.
        steps: steps of the base optimizer in between; >= 1.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    def __call__(self, step: int, lr: float) -> float:
        """The factor at a step."""
        del lr
        return self._between((1 - math.cos(math.pi * self._progress(step))) / 2)


@dataclass(frozen=True)
class TiedToLearningRate:
    """The factor is 1 at the learning rate `highest`, `least` at `lowest`, linear in between (arXiv 2203.08065, GSAM).

    The learning rate is that of the first parameter group at the moment of the step; below `lowest` the factor is `least`.

    Args:
        highest: > lowest; usually the peak of the learning-rate schedule.
        lowest: the learning rate at which the factor is `least`; >= 0, and below `highest`. By name alone.
        least: the factor there; >= 0. By name alone.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    highest: float
    _: KW_ONLY
    lowest: float = 0.0
    least: float = 0.0

    def __post_init__(self) -> None:
        for name in ("highest", "lowest", "least"):
            non_negative(name, getattr(self, name))
        if self.highest <= self.lowest:
            raise ValueError(f"highest must be above lowest, got highest={self.highest}, lowest={self.lowest}")

    def __call__(self, step: int, lr: float) -> float:
        """The factor at a learning rate."""
        del step
        share = (lr - self.lowest) / (self.highest - self.lowest)
        return self.least + (1 - self.least) * max(share, 0.0)
