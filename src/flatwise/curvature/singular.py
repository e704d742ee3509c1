"""The largest singular values and vectors of many matrices at once, known by their products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flatwise.curvature.krylov import ROUNDING

GROWTH = 1.25
"""The basis grows so much from one decomposition to the next: many small ones cost more than products."""


class Singular(NamedTuple):
    """What was found, for each of n matrices J.

    Attributes:
        values: descending [n, k].
        left: unit vectors u [n, outputs, k], zero where the value is 0. `J v = value * u` to rounding.
        right: unit vectors v [n, inputs, k], zero where the value is 0.
        residuals: `norm(J' u - value * v)` [n, k].
        products: how many products with all n matrices, or their transposes.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    residuals: Tensor
    products: int


def top_singular(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor], start: Tensor, tol: float, max_basis: int
) -> Singular:
    """By band Golub-Kahan bidiagonalisation with full reorthogonalisation: band, as k vectors to start from find k-fold values.

    It ends when all residuals are at most `tol` times the matrix's largest value, or are rounding.

    Args:
        forward: from [n, inputs] to the products [n, outputs].
        backward: from [n, outputs] to those with the transposes.
        start: any k vectors for each [n, inputs, k].
        tol: the relative residual.
        max_basis: how many right vectors may be held.
    """
    space, k = _Space(forward, backward, start), start.shape[2]
    limit = min(max_basis, start.shape[1])
    tol = max(tol, ROUNDING * torch.finfo(start.dtype).eps)
    while True:
        for _ in range(min(limit, int(GROWTH * space.size) + k) - space.size):
            space.grow()
        found = space.decomposed(k)
        if space.size == limit or bool((found.residuals <= tol * found.values[:, :1]).all()):
            return found


class _Space:
    """Orthonormal bases Q of right vectors and U of left ones with `J Q = U B`, and `J' U`; all of them for n matrices.

    Where there is nothing left to add for one of the matrices its vectors are zero.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor], start: Tensor
    ) -> None:
        self._forward, self._backward = forward, backward
        self._right: list[Tensor] = []
        self._left: list[Tensor] = []
        self._returned: list[Tensor] = []
        self._pending = list(start.unbind(2))
        self._matrix = start.new_zeros(len(start), 0, 0)

    @property
    def size(self) -> int:
        """How many right vectors there are."""
        return len(self._right)

    def grow(self) -> None:
        """Add a vector to each basis: what the first pending one brings, and what comes of it."""
        _, right = _split(self._pending.pop(0), self._right)
        column, left = _split(self._forward(right), self._left)
        returned = self._backward(left)
        below = self._matrix.new_zeros(len(self._matrix), 1, self.size)
        self._matrix = torch.cat([torch.cat([self._matrix, below], 1), column[:, :, None]], 2)
        self._right.append(right)
        self._left.append(left)
        self._returned.append(returned)
        self._pending.append(returned)

    def decomposed(self, k: int) -> Singular:
        """The k largest values and their vectors, as the bases know them."""
        p, values, c = torch.linalg.svd(self._matrix)
        values, p, c = values[:, :k], p[:, :, :k], c[:, :k].transpose(1, 2)
        right, some = torch.stack(self._right, 2) @ c, values[:, None] > 0
        residuals = torch.linalg.vector_norm(torch.stack(self._returned, 2) @ p - values[:, None] * right, dim=1)
        return Singular(
            values, torch.stack(self._left, 2) @ p * some, right * some, residuals * some[:, 0], 2 * len(self._right)
        )


def _split(vectors: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Coefficients [n, m + 1] in a basis and a unit vector that is orthogonal to it; zero where what is left is rounding."""
    rest, total = vectors, vectors.new_zeros(len(vectors), len(basis))
    for _ in range(2 if basis else 0):
        coefficients = torch.stack([(q * rest).sum(1) for q in basis], 1)
        for q, coefficient in zip(basis, coefficients.unbind(1), strict=True):
            rest = rest - coefficient[:, None] * q
        total = total + coefficients
    length = torch.linalg.vector_norm(rest, dim=1)
    floor = ROUNDING * torch.finfo(vectors.dtype).eps * torch.linalg.vector_norm(vectors, dim=1)
    new = length > floor
    unit = torch.where(new[:, None], rest / length[:, None], 0.0)
    return torch.cat([total, (length * new)[:, None]], 1), unit
