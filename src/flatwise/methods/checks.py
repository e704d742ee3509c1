"""Hyper-parameters checked at the first moment they can be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real


def non_negative(name: str, value: object) -> None:
    """Refuse anything but a finite real number >= 0."""
    number = _number(name, value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")


def positive_integer(name: str, value: object) -> None:
    """Refuse anything but an integer >= 1."""
    if _integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")


def whole(name: str, value: object) -> None:
    """Refuse anything but an integer >= 0."""
    if _integer(name, value) < 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")


def finite(name: str, value: object) -> None:
    """Refuse anything but a finite real number."""
    if not math.isfinite(_number(name, value)):
        raise ValueError(f"{name} must be finite, got {value!r}")


def at_least(name: str, value: object, least: float) -> None:
    """Refuse anything but a finite real number >= `least`."""
    finite(name, value)
    if _number(name, value) < least:
        raise ValueError(f"{name} must be at least {least:g}, got {value!r}")


def positive(name: str, value: object) -> None:
    """Refuse anything but a finite real number > 0."""
    finite(name, value)
    if _number(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def fraction(name: str, value: object) -> None:
    """Refuse anything but a real number in [0, 1)."""
    finite(name, value)
    if not 0 <= _number(name, value) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def share(name: str, value: object) -> None:
    """Refuse anything but a real number in (0, 1]."""
    finite(name, value)
    if not 0 < _number(name, value) <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value!r}")


def no_share(name: str, value: object) -> None:
    """Refuse a share of the run where steps are counted: only the command line knows how long the run is."""
    if isinstance(value, float) and 0 < value <= 1:
        raise TypeError(
            f"{name} must be an integer, a number of steps, got {value!r}: a share of the run is for the command line alone. "
            f"Here pass int({value!r} * epochs * len(loader))"
        )


def one_of(name: str, value: object, known: Sequence[str], otherwise: str = "") -> None:
    """Refuse anything but one of the names; `otherwise` goes on with what else would be right."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}{otherwise}, got {value!r}")


def a_function(name: str, value: object) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, such as flatwise.curvature.eigenspace(objective), got {value!r}")


def a_method(name: str, value: object) -> None:
    """Refuse anything but an instance with the traits that wrappers ask for."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be an instance, got the class {value.__name__}: pass {value.__name__}()")
    if not all(hasattr(value, trait) for trait in ("passes", "init", "needs", "changes_update", "adaptive")):
        raise TypeError(
            f"{name} must be one of flatwise.methods or derived from flatwise.methods.Dialogue, got {value!r}"
        )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    return float(value)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    return value
