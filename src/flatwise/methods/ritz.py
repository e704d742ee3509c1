"""The largest Ritz pair of a few Hessian-vector products, each a difference of gradients."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.products import difference_length, hessian_product
from flatwise.vectors import Vector

# What is left of a product after orthogonalisation is rounding when it is less than EXHAUSTED * eps of the product.
EXHAUSTED = 100.0


@dataclass(frozen=True)
class RitzPair:
    """A unit vector and its Rayleigh quotient, with the norm of the residual and the smallest Ritz value beside it."""

    vector: Vector
    value: float
    residual: float
    lowest: float


def leading_ritz_pair(
    start: Vector, base: Vector, state: State, products: int, lowest: float = 0.0
) -> Generator[At, Evaluation, RitzPair]:
    """Improve `start` towards the eigenvector of the largest (algebraic) eigenvalue by some Hessian-vector products.

    Lanczos with full orthogonalisation, but with the projected matrix from explicit inner products: the noise of differences
    breaks the three-term recurrence, not a projection. Power iteration would follow a larger negative eigenvalue; the largest
    Ritz value does not. What the last product adds to the space is used as well: see `_free_step`.

    Args:
        start: where the Krylov space begins.
        base: the gradient at the weights in evaluation mode.
        state: for the weights' norm and precision.
        products: how many, at least 1; each is one evaluation, and as many vectors are kept.
        lowest: the lowest eigenvalue known of, for the last step.
    """
    basis: list[Vector] = []
    columns: list[Tensor] = []
    length = difference_length(state)
    remainder, size = start, V.norm(start)
    for _ in range(products):
        basis.append(V.scale(remainder, V.reciprocal(size)))
        product, length = yield from hessian_product(base, basis[-1], length)
        remainder = V.restrict(product, [t is not None for t in base])
        columns.append(torch.stack([V.dot(b, remainder) for b in basis]))
        size = _orthogonalise(remainder, basis)
    value, coordinates, lowest = _largest(columns, _rank(basis), lowest)
    coupling = float(size) * coordinates[-1]
    vector = _combination(basis, coordinates)
    V.add_(vector, remainder, _free_step(value, coupling, lowest) * V.reciprocal(size))
    return RitzPair(V.unit(vector), value, abs(coupling), lowest)


def _orthogonalise(vector: Vector, basis: list[Vector]) -> Tensor:
    """Take the part along `basis` out of `vector`, in place, and return the norm of the rest: 0 where the space is exhausted."""
    before = V.norm(vector)
    for _ in range(2):  # once leaves rounding errors behind
        for direction in basis:
            V.add_(vector, direction, -V.dot(direction, vector))
    after = V.norm(vector)
    return torch.where(after > EXHAUSTED * V.epsilon(vector) * before, after, torch.zeros_like(after))


def _rank(basis: list[Vector]) -> int:
    """How many basis vectors came before the space was exhausted, at least 1; the rest are zero."""
    return max(1, sum(bool(V.norm(b) > 0) for b in basis))


def _largest(columns: list[Tensor], rank: int, lowest: float) -> tuple[float, list[float], float]:
    """The largest eigenvalue and its eigenvector of the projected matrix, and the lowest eigenvalue known of (at most 0).

    The columns hold the matrix's upper triangle. Non-finite entries belong to a step that will be skipped, and must not raise.
    """
    padded = [torch.nn.functional.pad(c, (0, len(columns) - len(c))) for c in columns]
    projected = torch.nan_to_num(torch.stack(padded, dim=1).cpu().double(), posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(projected[:rank, :rank], UPLO="U")
    coordinates = vectors[:, -1].tolist() + [0.0] * (len(columns) - rank)
    return float(values[-1]), coordinates, min(lowest, float(values[0]), 0.0)


def _free_step(value: float, coupling: float, lowest: float) -> float:
    """How much of the last remainder to add to the Ritz vector: `H v = value * v + coupling * remainder` is known for free.

    The curvature along the remainder is not known. Taking it as the lowest eigenvalue known of makes this a power step with
    just the shift that a negative eigenvalue asks for; with one product a refresh it is all the progress there is.
    """
    return math.tan(0.5 * math.atan2(2 * coupling, value - lowest))


def _combination(basis: list[Vector], coordinates: list[float]) -> Vector:
    result = V.scale(basis[0], coordinates[0])
    for vector, coordinate in zip(basis[1:], coordinates[1:]):
        V.add_(result, vector, coordinate)
    return result
