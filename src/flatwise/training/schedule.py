"""When things happen in a run: pure functions of the step, so that nothing of them needs a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flatwise.optim.schedules import Cosine, Linear, RhoSchedule, TiedToLearningRate
from flatwise.training.config import TrainConfig

_FALLS: dict[str, Callable[[float, int], RhoSchedule]] = {
    "linear": lambda lr, steps: Linear(1.0, 0.0, steps),
    "cosine": lambda lr, steps: Cosine(1.0, 0.0, steps),
    "learning-rate": lambda lr, steps: TiedToLearningRate(highest=lr),
}
"""From the highest learning rate and the number of steps."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a run.

    A budget of gradient evaluations is turned into a number of steps by the method's declared cost. Where that depends on the
    data, the run goes on until the budget is spent (its last step may go a little beyond), and the learning rate follows what
    is spent in place of the step.

    Attributes:
        config: resolved.
        per_epoch: steps per epoch.
        affordable: the steps that the budget pays for; None without a budget, or where that depends on the data.
    """

    config: TrainConfig
    per_epoch: int
    affordable: int | None = None

    @property
    def total(self) -> int:
        """The number of steps; the most there can be where the cost of a step depends on the data."""
        given = self.affordable or self.config.evaluations or self.config.steps
        return given or (self.config.epochs or 0) * self.per_epoch

    @property
    def is_open(self) -> bool:
        """Whether the number of steps is not known before."""
        return self.config.evaluations is not None and self.affordable is None

    def position(self, step: int, spent: float) -> tuple[int, int]:
        """How far a run is after so many steps and evaluations, and how far it goes: in steps, or in evaluations."""
        return (min(int(spent), self.total), self.total) if self.is_open else (step, self.total)

    def over(self, step: int, spent: float) -> bool:
        """Whether a run ends after so many steps and evaluations."""
        now, end = self.position(step, spent)
        return now >= end

    def lr(self, step: int, spent: float = 0.0) -> float:
        """The learning rate of the step after so many steps and evaluations: constant, or half a cosine from `lr` to 0."""
        full = self.config.lr or 0.0
        if self.config.schedule == "constant":
            return full
        now, end = self.position(step, spent)
        return full * (1 + math.cos(math.pi * now / end)) / 2

    @property
    def rho_factor(self) -> RhoSchedule | None:
        """What rho is multiplied with, from the steps taken and the learning rate; None where it stays as it is."""
        fall = _FALLS.get(self.config.rho_schedule)
        return fall(self.config.lr or 0.0, self.total) if fall else None

    def rho(self, taken: int, lr: float) -> float | None:
        """The rho of the step after `taken` steps, skipped ones not counted; None for a method without a rho."""
        full, factor = self.config.rho, self.rho_factor
        return full if full is None or factor is None else full * factor(taken, lr)

    def probes(self, step: int) -> bool:
        """Whether to measure before this step."""
        every = self.config.probe_every
        if every is None:
            every = self.per_epoch if self.per_epoch > 1 else max(1, self.total // 100)
        return step == 0 if every == 0 else step % every == 0

    def saves(self, step: int) -> bool:
        """Whether to write a checkpoint after so many steps."""
        every = self.config.checkpoint_every or max(1, self.total // 10)
        return step % every == 0 or step == self.total or self.keeps(step)

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint after so many steps is kept for good."""
        every = self.config.keep_every
        return every is not None and (step % every == 0 or step == self.total)
