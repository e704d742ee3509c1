"""Arguments that the estimators share, checked before the first product."""

from __future__ import annotations

from typing import Any


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
