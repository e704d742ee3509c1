"""Mistakes that cannot be seen in what a step computes, looked for in the first one only: it takes time."""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any

from flatwise.optim import messages
from flatwise.optim.replicas import Replicas
from flatwise.optim.step import Step


class FirstStep:
    """Made before the first step's passes; `conclude` warns after them.

    Args:
        replicas: the processes that share the step, if they do.
        groups: the parameter groups.
        fresh_noise: whether passes are meant to differ in their random numbers.
    """

    def __init__(self, replicas: Replicas, groups: list[dict[str, Any]], fresh_noise: bool) -> None:
        replicas.warn_if_unaware()
        self._groups = groups
        self._rates = self._rates_now()
        self._before = None if fresh_noise else _foreign_states()

    def conclude(self, step: Step) -> None:
        """Warn of random numbers that are not replayed, and of gradients or learning rates that changed within a pass."""
        if self._before is not None and step.evaluations > 1 and _foreign_states() != self._before:
            warnings.warn(messages.FOREIGN_NOISE, UserWarning, stacklevel=3)
        if step.interfered:
            warnings.warn(messages.CHANGED_IN_A_PASS, UserWarning, stacklevel=3)
        if self._rates_now() != self._rates:
            warnings.warn(messages.RATE_CHANGED, UserWarning, stacklevel=3)

    def _rates_now(self) -> list[float]:
        return [float(group.get("lr", 0.0)) for group in self._groups]


def _foreign_states() -> tuple[Any, ...]:
    """The states of the global generators of Python and numpy."""
    numpy: Any = sys.modules.get("numpy")  # where nobody has imported it, nobody has drawn from it
    if numpy is None:
        return (random.getstate(),)
    _, keys, position, *_ = numpy.random.get_state()
    return random.getstate(), keys.tobytes(), position
