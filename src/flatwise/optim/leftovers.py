"""Gradients that somebody else's backward left in `.grad` before a step: they are no part of it, and somebody may think so."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence

from torch import Tensor

from flatwise.optim import lightning_closures, messages
from flatwise.vectors import Vector


class Leftovers:
    """Tells the direction that a step left in `.grad` from gradients that came from elsewhere."""

    def __init__(self) -> None:
        self._ours: list[weakref.ref[Tensor]] = []
        self._told: set[str] = set()

    def remember(self, direction: Vector) -> None:
        """These are ours."""
        self._ours = [weakref.ref(d) for d in direction if d is not None]

    def check(self, parameters: Sequence[Tensor], closure: object = None) -> None:
        """Warn once about gradients that the step will drop.

        Raises:
            RuntimeError: the closure is Lightning's, whose accumulation leaves the micro-batches before the last one there.
        """
        found = [p.grad for p in parameters if p.grad is not None]
        if not found or not self._is_foreign(found):
            return
        if lightning_closures.is_automatic(closure):
            raise RuntimeError(messages.LIGHTNING_ACCUMULATES)
        self._warn_once(messages.LEFT_OVER, closure)

    def warn_unused(self, closure: object = None) -> None:
        """Warn once that the passes before were of no use."""
        self._warn_once(messages.UNUSED, closure)

    def _warn_once(self, message: str, closure: object) -> None:
        """As from the line on which the user called `passes` or `step`."""
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, UserWarning, stacklevel=6 if closure is None else 7)

    def _is_foreign(self, found: list[Tensor]) -> bool:
        ours = {id(t) for t in (ref() for ref in self._ours) if t is not None}
        return all(id(g) not in ours for g in found)  # a parameter that joined later may bring a gradient of its own
