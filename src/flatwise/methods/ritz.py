"""The largest Ritz pair of a few Hessian-vector products, each a difference of gradients."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.products import difference_length, hessian_product
from flatwise.vectors import Vector

# What is left of a product after orthogonalisation is rounding when it is less than EXHAUSTED * eps of the product.
EXHAUSTED = 100.0

# Differences that are too short are drowned by the rounding of half precision or by the kinks of ReLU between the two points;
# where they are too long, third derivatives bend them. How much is too much depends on the network and changes in training, but
# noise shows: exact products make a symmetric matrix. When the projected matrix misses that by more than NOISY of its largest
# eigenvalue, the next refresh takes twice the length; by less than QUIET, half of it, between SHORTEST and LONGEST times
# `difference_length`: 2e-3 to 2e-2 of the norm of the weights in float32. The constants were chosen on small networks with and
# without BatchNorm, trained on digits, by |cos| with exact eigenvectors.
NOISY, QUIET, SHORTEST, LONGEST = 0.35, 0.15, 4.0, 32.0


@dataclass
class Search:
    """What is known from refresh to refresh, and found in the last one.

    Attributes:
        lowest: the lowest eigenvalue met, at most 0; the shift of the last step follows it.
        longer: by how much differences are longer than `difference_length`; between SHORTEST and LONGEST.
        asymmetry: of the last projected matrix, relative to its largest eigenvalue.
        value: the Rayleigh quotient of the last Ritz vector.
        residual: the norm of its residual.
    """

    lowest: float = 0.0
    longer: float = SHORTEST
    asymmetry: float = 0.0
    value: float = 0.0
    residual: float = 0.0

    @classmethod
    def recalled(cls, numbers: Mapping[str, float]) -> Search:
        """As the last refresh left it, from numbers that have been through a checkpoint; anew where there are none."""
        return cls(**{f.name: numbers[f.name] for f in fields(cls) if f.name in numbers})


def leading_ritz_vector(
    start: Vector, base: Vector, state: State, products: int, search: Search
) -> Generator[At, Evaluation, Vector]:
    """Improve `start` towards the unit eigenvector of the largest (algebraic) eigenvalue by some Hessian-vector products.

    Lanczos with full orthogonalisation, but with the projected matrix from explicit inner products: the noise of
    differences breaks the three-term recurrence, not a projection. Power iteration would follow a larger negative
    eigenvalue; the largest Ritz value does not. What the last product adds to the space is used as well: see
    `_free_step`.

    Args:
        start: where the Krylov space begins; overwritten.
        base: the gradient at the weights in evaluation mode.
        state: for the weights' norm and precision.
        products: how many, at least 1; each is one evaluation, and as many vectors are kept.
        search: read and written.
    """
    basis: list[Vector] = []
    columns: list[Tensor] = []
    sizes = [V.norm(start)]
    remainder, length = start, difference_length(state, base, search.longer)
    for _ in range(products):
        V.scale_(remainder, V.reciprocal(sizes[-1]))  # in place: at a refresh every copy of the weights counts
        basis.append(remainder)
        remainder = yield from hessian_product(base, basis[-1], length)
        columns.append(torch.stack([V.dot(b, remainder) for b in basis]))
        sizes.append(orthogonalise(remainder, basis, columns[-1]))
    projected, couplings = _on_host(columns), torch.stack(sizes).double().tolist()
    coordinates = largest(projected, _rank(couplings), search)
    _adapt_length(projected, couplings, search)
    vector = combination(basis, coordinates)
    coupling = couplings[-1] * coordinates[-1]
    search.residual = abs(coupling)
    V.add_(vector, remainder, _free_step(coupling, search) * V.reciprocal(sizes[-1]))
    V.scale_(vector, V.reciprocal(V.norm(vector)))
    return vector


def orthogonalise(vector: Vector, basis: list[Vector], coordinates: Tensor) -> Tensor:
    """Take the part along `basis` out of `vector`, in place, and return the norm of the rest: 0 where the space is exhausted."""
    for direction, coordinate in zip(basis, coordinates):
        V.add_(vector, direction, -coordinate)
    for direction in basis:  # once leaves rounding errors behind
        V.add_(vector, direction, -V.dot(direction, vector))
    rest, along = V.norm(vector), torch.linalg.vector_norm(coordinates)
    return torch.where(rest > EXHAUSTED * V.epsilon(vector) * along, rest, torch.zeros_like(rest))


def _on_host(columns: list[Tensor]) -> Tensor:
    """The projected matrix, of which the columns hold the upper triangle, in float64.

    Non-finite entries belong to a step that will be skipped, and must not raise here.
    """
    padded = [torch.nn.functional.pad(c, (0, len(columns) - len(c))) for c in columns]
    return torch.nan_to_num(torch.stack(padded, dim=1).cpu().double(), posinf=0.0, neginf=0.0)


def _rank(couplings: list[float]) -> int:
    """How many basis vectors came before the space was exhausted, at least 1; the rest are zero."""
    return next((i for i, size in enumerate(couplings[:-1]) if i and not size > 0), len(couplings) - 1)


def largest(projected: Tensor, rank: int, search: Search) -> list[float]:
    """The coordinates of the largest Ritz vector."""
    values, vectors = torch.linalg.eigh(projected[:rank, :rank], UPLO="U")
    search.value, search.lowest = float(values[-1]), min(search.lowest, float(values[0]), 0.0)
    return vectors[:, -1].tolist() + [0.0] * (len(projected) - rank)


def _adapt_length(projected: Tensor, couplings: list[float], search: Search) -> None:
    """Orthogonalisation made the lower triangle: the couplings below the diagonal, zeros further down. The upper should match."""
    lower = torch.diag(torch.nan_to_num(torch.tensor(couplings[1:-1], dtype=torch.float64), posinf=0.0), diagonal=1)
    search.asymmetry = float((projected.triu(1) - lower).norm()) / max(
        abs(search.value), torch.finfo(torch.float32).tiny
    )
    factor = 2.0 if search.asymmetry > NOISY else 0.5 if search.asymmetry < QUIET else 1.0
    search.longer = min(max(search.longer * factor, SHORTEST), LONGEST)


def _free_step(coupling: float, search: Search) -> float:
    """How much of the last remainder to add to the Ritz vector: `H v = value * v + coupling * remainder` is known for free.

    The curvature along the remainder is not known. Taking it as the lowest eigenvalue known of makes this a power step
    with just the shift that a negative eigenvalue asks for; with one product a refresh it is all the progress there is.
    """
    return math.tan(0.5 * math.atan2(2 * coupling, search.value - search.lowest))


def combination(basis: list[Vector], coordinates: list[float]) -> Vector:
    """The sum of the basis vectors by their coordinates, written into the first of them."""
    result = basis[0]
    V.scale_(result, coordinates[0])
    for vector, coordinate in zip(basis[1:], coordinates[1:]):
        V.add_(result, vector, coordinate)
    return result
