"""The one copy of the weights from which they are restored."""

from __future__ import annotations

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.vectors import Vector


class Backup:
    """A copy of what moves in a dialogue, made once: every restoration is from the same copy, so nothing drifts.

    Its storage is kept from step to step. Asking the system for fresh pages at each step costs more than the copy.
    """

    def __init__(self) -> None:
        self._copies: Vector = []
        self._parameters: Vector = []
        self._moved = False

    def save(self, parameters: list[Tensor], vector: Vector) -> None:
        """Copy the parameters that `vector` is about to move, unless this dialogue has copied them already."""
        self._fit(len(parameters))
        moving = [p if v is not None else None for p, v in zip(parameters, vector, strict=True)]
        fresh = [p if known is None else None for p, known in zip(moving, self._parameters, strict=True)]
        self._copies = [c if p is None or _fits(c, p) else torch.empty_like(p) for c, p in zip(self._copies, fresh)]
        V.copy_(self._copies, fresh)
        self._parameters = [p if p is not None else known for p, known in zip(fresh, self._parameters)]
        self._moved = True

    def restore(self) -> bool:
        """Copy back what was saved, into the same storage; say whether anything had moved."""
        moved = self._moved
        if moved:
            V.copy_(self._parameters, self._copies)
            self._moved = False
        return moved

    def forget(self) -> None:
        """End the dialogue: the next one copies anew."""
        self._parameters = [None] * len(self._parameters)

    def _fit(self, size: int) -> None:
        self._copies += [None] * (size - len(self._copies))
        self._parameters += [None] * (size - len(self._parameters))


def _fits(copy: Tensor | None, parameter: Tensor) -> bool:
    """Whether a copy made earlier can hold the parameter still: it may have been moved or replaced since."""
    return (
        copy is not None
        and type(copy) is type(parameter.data)
        and (copy.shape, copy.dtype, copy.device) == (parameter.shape, parameter.dtype, parameter.device)
    )
