"""How the curvature in a claim's numbers was computed, as JSON values."""

from __future__ import annotations

from flatwise.curvature import Operator
from flatwise.experiments.claims.claim import Values


def recorded(operator: Operator) -> Values:
    """The record of an operator: engine, precision, data, mode, seed; empty where it has none."""
    return {} if operator.record is None else dict(vars(operator.record))
