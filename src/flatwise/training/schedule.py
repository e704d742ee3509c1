"""When things happen in a run: pure functions of the step, so that nothing of them needs a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flatwise.training.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """The steps of a run. `total` counts them; `config` is resolved."""

    config: TrainConfig
    per_epoch: int

    @property
    def total(self) -> int:
        """The number of steps."""
        return self.config.steps or (self.config.epochs or 0) * self.per_epoch

    def lr(self, step: int) -> float:
        """The learning rate of a step: constant, or half a cosine from `lr` to 0."""
        full = self.config.lr or 0.0
        if self.config.schedule == "constant":
            return full
        return full * (1 + math.cos(math.pi * step / self.total)) / 2

    def probes(self, step: int) -> bool:
        """Whether to measure before this step."""
        every = self.config.probe_every
        if every is None:
            every = self.per_epoch if self.per_epoch > 1 else max(1, self.total // 100)
        return step == 0 if every == 0 else step % every == 0

    def saves(self, step: int) -> bool:
        """Whether to write a checkpoint after so many steps."""
        every = self.config.checkpoint_every or max(1, self.total // 10)
        return step % every == 0 or step == self.total
