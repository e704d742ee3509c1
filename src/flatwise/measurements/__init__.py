"""`flatwise measure`: curvature of the checkpoints of runs, and of networks of the user's own. Resolved on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatwise.measurements.plan import Plan

if TYPE_CHECKING:
    from flatwise.measurements.cost import Expense as Expense
    from flatwise.measurements.cost import expense as expense
    from flatwise.measurements.measuring import measure as measure
    from flatwise.measurements.subject import Subject as Subject
    from flatwise.measurements.targets import Request as Request
    from flatwise.measurements.units import carry_out as carry_out

_HOMES = {
    "Expense": "cost",
    "Request": "targets",
    "Subject": "subject",
    "carry_out": "units",
    "expense": "cost",
    "measure": "measuring",
}

__all__ = ["Expense", "Plan", "Request", "Subject", "carry_out", "expense", "measure"]


def __getattr__(name: str) -> Any:
    """The names that need torch, imported on first use: the command line needs the plan alone."""
    if name in _HOMES:
        return getattr(import_module(f"flatwise.measurements.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flatwise.measurements' has no attribute {name!r}")
