"""The optimizer that drives a method."""

from __future__ import annotations

from flatwise.optim import schedules
from flatwise.optim.groups import parameter_groups
from flatwise.optim.passes import Pass, Passes
from flatwise.optim.sharpness_aware import SharpnessAware
from flatwise.optim.two_pass import two_pass
from flatwise.optim.unwrapping import unwrap

__all__ = ["Pass", "Passes", "SharpnessAware", "parameter_groups", "schedules", "two_pass", "unwrap"]
