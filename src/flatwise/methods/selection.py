"""Which samples of a batch count in a later evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNSEEN = (
    "this method goes on with part of the samples, and has not seen their losses: in every pass, "
    "p.backward(p.chosen(losses).mean()) with the loss of each sample (reduction='none')"
)


class Selection:
    """Those samples whose loss rises most from the first evaluation to a later one.

    Args:
        share: of the samples to go on with, in (0, 1]; rounded up in each micro-batch.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._before: list[Tensor] = []
        self._place: int | None = None

    def choose(self) -> None:
        """From now on choose, where before losses were remembered."""
        if not self._before:
            raise RuntimeError(UNSEEN)
        self._place = 0

    def of(self, losses: Tensor) -> Tensor:
        """The losses that count, of one micro-batch: all of them at first, later those that have risen most."""
        if self._place is None:
            self._before.append(losses.detach())
            return losses
        rise = losses.detach() - self._before[self._place]
        self._place += 1
        return losses[torch.topk(rise, math.ceil(self.share * len(losses))).indices]
