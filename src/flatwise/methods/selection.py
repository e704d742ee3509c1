"""Which samples of a batch count in a later evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# 0.55 * 100 is a little above 55 in floating point, and 56 samples would be one too many.
ROUNDING = 1e-12

UNSEEN = (
    "this method goes on with part of the samples, and has not seen their losses: in every pass, "
    "p.backward(p.chosen(losses).mean()) with the loss of each sample (reduction='none'). A closure cannot: drive the step "
    "with optimizer.passes()"
)

CHANGED = (
    "p.chosen was shown other samples than in the first pass of this step ({now} losses where there were {before}): every pass "
    "takes the same micro-batches in the same order, each of them once"
)


class Selection:
    """Those samples whose loss rises most from the first evaluation to a later one; of those that rise alike, the first.

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
        """The losses that count, of one micro-batch: all of them at first, later those that have risen most.

        Raises:
            ValueError: losses are not of shape [B], or not those of the first evaluation.
        """
        if losses.ndim != 1:
            raise ValueError(f"p.chosen needs the loss of each sample, of shape [B], got {list(losses.shape)}")
        if self._place is None:
            self._before.append(losses.detach())
            return losses
        rise = losses.detach() - self._next(len(losses))
        count = math.ceil(self.share * len(losses) * (1 - ROUNDING))
        return losses[torch.sort(rise, descending=True, stable=True).indices[:count]]

    def conclude(self) -> None:
        """After the later evaluation: all micro-batches of the first one have been seen again."""
        if self._place != len(self._before):
            raise RuntimeError(UNSEEN)

    def _next(self, size: int) -> Tensor:
        """The losses of the first evaluation that belong to this micro-batch."""
        assert self._place is not None
        before = self._before[self._place] if self._place < len(self._before) else None
        if before is None or len(before) != size:
            raise ValueError(CHANGED.format(now=size, before=0 if before is None else len(before)))
        self._place += 1
        return before
