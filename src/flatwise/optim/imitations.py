"""Optimizers that frameworks wrap around ours, and the way back to the real one.

Lightning and Fabric make a class on the fly that derives from the class of the optimizer it wraps, so that `isinstance` holds.
A method of ours called on such an imitation would write its records there and leave the real optimizer without them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

_DEPTH = 8  # wrappers around wrappers, and no endless search where one holds itself


def real(optimizer: Any) -> Any:
    """The optimizer that has a base: the given one, or what imitations and other wrappers hold in `.optimizer`; None without."""
    for _ in range(_DEPTH):
        own = getattr(optimizer, "__dict__", {})
        if "base" in own:
            return optimizer
        optimizer = own.get("optimizer", own.get("_optimizer"))
    return None


def on_the_real_one(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that works on the real optimizer, also when it is called on an imitation."""

    @wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(real(self), *args, **kwargs)

    return call
