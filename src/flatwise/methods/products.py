"""Hessian-vector products as differences of gradients.

No double backward: a product costs one evaluation, and works with any layer, closure and autocast that can be trained.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.vectors import Scalar, Vector

# The length of a difference is RELATIVE * sqrt(eps) of the norm of the weights: 5e-4 of it in float32, where the truncation
# error (proportional to the length) and the rounding error (inversely so) are about equal. Half-precision weights would ask
# for more than LONGEST of their norm, which no longer is a small displacement.
RELATIVE = 1.5
LONGEST = 0.03

# A difference is drowned by rounding (autocast computes in half precision) when it changes the gradient by less than
# VISIBLE * sqrt(eps) of its norm; then the next difference is longer, by GROWTH at most.
VISIBLE = 30.0
GROWTH = 4.0


def difference_length(state: State) -> Tensor:
    """The length of a difference of gradients that balances truncation against rounding, a 0-d tensor."""
    norm = V.norm(state.weights)
    relative = min(RELATIVE * math.sqrt(V.epsilon(state.weights)), LONGEST)
    return relative * torch.where(norm > 0, norm, torch.ones_like(norm))


def quotient(there: Vector, base: Vector, length: Tensor) -> Vector:
    """`(there - base) / length`, written into `there`."""
    V.add_(there, base, -1.0)
    V.scale_(there, 1 / length)
    return there


def hessian_product(
    base: Vector, direction: Vector, length: Tensor
) -> Generator[At, Evaluation, tuple[Vector, Tensor]]:
    """The product of the evaluation-mode Hessian with `direction`, and the length for the next difference.

    `base` is the gradient at the weights in evaluation mode: a train-mode one under BatchNorm would spoil the product.
    """
    there = yield At.displaced(direction, length, probe=True)
    product = quotient(there.release(), base, length)
    return product, length * _growth(V.norm(product) * length, V.norm(base), V.epsilon(direction))


def _growth(change: Tensor, size: Tensor, eps: float) -> Scalar:
    wanted = VISIBLE * math.sqrt(eps) * size * V.reciprocal(change)
    return wanted.clamp(1.0, GROWTH)
