"""Arguments that the estimators share, checked before the first product."""

from __future__ import annotations

from typing import Any

from flatwise.objective import Objective


def check_objective(objective: Any) -> None:
    """Refuse what is no objective, such as a model."""
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be a flatwise.Objective(model, loss_fn, batches), got {type(objective).__name__}"
        )


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
