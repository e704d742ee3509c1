"""Differences of gradients: Hessian-vector products of whatever can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from flatwise import vectors as V
from flatwise.vectors import Vector

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective


def reach(weights: Vector) -> float:
    """A length over which a central difference of gradients balances rounding and truncation.

    With gradients known to the machine epsilon, and third derivatives of the loss as large as the second ones over the norm of
    the weights, that is the cube root of epsilon times this norm: 5e-3 of it in float32. (1 in place of a norm of 0.)
    """
    return V.epsilon(weights) ** (1 / 3) * (float(V.norm(weights)) or 1.0)


def central(objective: Objective, direction: Sequence[Tensor | None], length: float) -> Vector:
    """The Hessian times `direction` from the gradients at `length` ahead and behind, in at least float32."""
    with objective.displaced() as place:
        place.to(direction, length)
        _, *ahead = objective.wide_value_and_gradient()
        place.to(direction, -length)
        _, *behind = objective.wide_value_and_gradient()
    V.add_(ahead, behind, -1.0)
    V.scale_(ahead, 0.5 / length)
    return list(ahead)
