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
from flatwise.vectors import Vector

# The length of a difference is RELATIVE * sqrt(eps) of the norm of the weights: 5e-4 of it in float32, where the truncation
# error (proportional to the length) and the rounding error (inversely so) are about equal. Half-precision weights would ask
# for more than LONGEST of their norm, which no longer is a small displacement.
RELATIVE = 1.5
LONGEST = 0.03


def difference_length(state: State, base: Vector, longer: float = 1.0) -> Tensor:
    """The length of a difference of gradients that balances truncation against rounding, a 0-d tensor; or `longer` times it.

    The weights that count are those with a gradient in `base`: an unused parameter changes nothing for the others.
    """
    weights = V.restrict(state.weights, [g is not None for g in base])
    norm = V.norm(weights)
    relative = min(longer * RELATIVE * math.sqrt(V.epsilon(weights)), LONGEST)
    return relative * torch.where(norm > 0, norm, torch.ones_like(norm))


def quotient(there: Vector, base: Vector, length: Tensor) -> Vector:
    """`(there - base) / length`, written into `there`."""
    V.add_(there, base, -1.0)
    V.scale_(there, 1 / length)
    return there


def hessian_product(base: Vector, direction: Vector, length: Tensor) -> Generator[At, Evaluation, Vector]:
    """The product of the evaluation-mode Hessian with `direction`.

    `base` is the gradient at the weights in evaluation mode: a train-mode one under BatchNorm would spoil the product.
    """
    there = yield At.displaced(direction, length, probe=True)
    return V.restrict(quotient(there.release(), base, length), [g is not None for g in base])


def where_present(vector: Vector, like: Vector) -> Vector:
    """The vector with None where `like` has None: a parameter without gradient takes no part."""
    return V.restrict(vector, [t is not None for t in like])


def zero_where_absent(vector: Vector, like: Vector) -> Vector:
    """The vector with zeros, shaped like `like`, where it has None: what is remembered has no gaps."""
    return [z if v is None else v for v, z in zip(vector, V.zeros_like(like), strict=True)]


def second_difference_length(state: State, base: Vector) -> Tensor:
    """The length of a second difference of gradients that balances truncation against rounding, a 0-d tensor."""
    norm = difference_length(state, base) / min(RELATIVE * math.sqrt(V.epsilon(state.weights)), LONGEST)
    return norm * min(V.epsilon(state.weights) ** 0.25, LONGEST)
