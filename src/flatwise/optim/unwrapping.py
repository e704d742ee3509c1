"""From what a framework made of an optimizer back to ours."""

from __future__ import annotations

from flatwise.optim.imitations import real
from flatwise.optim.sharpness_aware import SharpnessAware


def unwrap(optimizer: object) -> SharpnessAware:
    """The `SharpnessAware` inside the wrapper of Accelerate, Lightning, Fabric or another that keeps it in `.optimizer`.

    Raises:
        TypeError: there is none.
    """
    found = real(optimizer)
    if not isinstance(found, SharpnessAware):
        raise TypeError(
            f"there is no SharpnessAware inside this {type(optimizer).__name__}: wrap your optimizer in one first"
        )
    return found
