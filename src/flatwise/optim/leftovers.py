"""Gradients that somebody else's backward left in `.grad` before a step: they are no part of it, and somebody may think so."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flatwise.optim import messages
from flatwise.vectors import Vector


class Leftovers:
    """Tells the direction that a step left in `.grad` from gradients that came from elsewhere."""

    def __init__(self) -> None:
        self._ours: list[weakref.ref[Tensor]] = []
        self._warned = False

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
        if _is_of_lightning(closure):
            raise RuntimeError(messages.LIGHTNING_ACCUMULATES)
        if not self._warned:
            warnings.warn(messages.LEFT_OVER, UserWarning, stacklevel=5)
            self._warned = True

    def _is_foreign(self, found: list[Tensor]) -> bool:
        ours = {id(t) for t in (ref() for ref in self._ours) if t is not None}
        return all(id(g) not in ours for g in found)  # a parameter that joined later may bring a gradient of its own


def _is_of_lightning(closure: Any) -> bool:
    """Lightning hands over an object of its own, or a partial function around it."""
    while isinstance(closure, functools.partial):
        modules = [getattr(type(a), "__module__", "") for a in closure.args]
        if any(name.startswith(("lightning.", "pytorch_lightning.")) for name in modules):
            return True
        closure = closure.func
    return type(closure).__module__.startswith(("lightning.", "pytorch_lightning."))
