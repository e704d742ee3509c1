"""Several Vectors at once: products, inner products, orthonormal bases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.krylov import ROUNDING, fitted, narrowed, widened
from flatwise.curvature.operator import Operator
from flatwise.vectors import Vector


def products(operator: Operator, block: Sequence[Vector]) -> list[Vector]:
    """The products of an operator with each vector of a block, in at least float32.

    Raises:
        ValueError: a product is NaN or infinite.
    """
    images = [fitted(operator(narrowed(v, operator.like)), operator.like, "the operator's product") for v in block]
    if not all(torch.isfinite(V.norm(image)) for image in images):
        raise ValueError("a product with the operator is NaN or infinite; are the weights still finite?")
    return images


def random_block(operator: Operator, count: int, seed: int, first: int = 0) -> list[Vector]:
    """`count` standard normal vectors, of those of a seed the ones from number `first` on; no other seed has one of them."""
    numbers = range(first, first + count)
    return [widened(V.random_like(operator.like, seed * 1_000_003 + number)) for number in numbers]


def gram(left: Sequence[Vector], right: Sequence[Vector]) -> Tensor:
    """The matrix of inner products `<left[i], right[j]>`, in float64."""
    return torch.tensor([[float(V.dot(a, b)) for b in right] for a in left], dtype=torch.float64)


def orthonormalized(block: Sequence[Vector]) -> tuple[list[Vector], Tensor]:
    """An orthonormal basis Q of a block, and the upper triangular R with `block = Q R` (Gram-Schmidt, twice).

    Where a vector depends on those before it, its column of Q is zero.
    """
    basis: list[Vector] = []
    triangle = torch.zeros(len(block), len(block), dtype=torch.float64)
    for j, vector in enumerate(block):
        rest = V.clone(vector)
        for _ in range(2):
            for i, q in enumerate(basis):
                coefficient = V.dot(q, rest)
                V.add_(rest, q, -coefficient)
                triangle[i, j] += float(coefficient)
        length = V.norm(rest)
        is_rounding = length <= ROUNDING * V.epsilon(rest) * V.norm(vector)
        triangle[j, j] = 0.0 if is_rounding else float(length)
        basis.append(V.zeros_like(rest) if is_rounding else V.scale(rest, 1 / length))
    return basis, triangle


def without(vector: Vector, basis: Sequence[Vector]) -> Vector:
    """The part of a vector that is orthogonal to an orthonormal basis."""
    rest = V.clone(vector)
    for q in basis:
        V.add_(rest, q, -V.dot(q, rest))
    return rest
