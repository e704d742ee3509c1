"""Experiments: comparisons of methods over seeds, and the demonstrations built from them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatwise.experiments.comparison import Arm as Arm
    from flatwise.experiments.comparison import Comparison as Comparison
    from flatwise.experiments.comparison import carry_out as carry_out

__all__ = ["Arm", "Comparison", "carry_out"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("flatwise.experiments.comparison"), name)
    raise AttributeError(f"module 'flatwise.experiments' has no attribute {name!r}")
