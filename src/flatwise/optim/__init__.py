"""The optimizer that drives a method."""

from __future__ import annotations

from flatwise.optim.passes import Pass, Passes
from flatwise.optim.sharpness_aware import SharpnessAware

__all__ = ["Pass", "Passes", "SharpnessAware"]
