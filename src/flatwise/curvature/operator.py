"""Symmetric operators on Vectors: what the estimators of curvature work on, so that none of them knows a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.record import Record
from flatwise.vectors import Vector


@dataclass(frozen=True)
class Operator:
    """A symmetric linear function from Vector to Vector.

    Attributes:
        product: the function.
        like: a template Vector of its domain: only shapes, dtypes and devices count. Where it is None, vectors are None.
        error: the relative error of a product, where it is more than rounding.
        record: how products come about, for what is measured of a network.
        second: another way to take products, where they are approximate: differences of another length, which meet other kinks.
            What both agree on can be believed.
    """

    product: Callable[[Vector], Vector]
    like: Vector
    error: float = 0.0
    record: Record | None = None
    second: Callable[[Vector], Vector] | None = None

    @property
    def size(self) -> int:
        """The number of coordinates: the operator is a `size` x `size` matrix that nobody builds."""
        return V.size(self.like)

    @property
    def engine(self) -> str | None:
        """How products are computed, if that is known: "double", "forward", "differences" or "one-sided"."""
        return None if self.record is None else self.record.engine

    @property
    def reason(self) -> str | None:
        """Why they are computed so, in words."""
        return None if self.record is None else self.record.reason

    def __call__(self, vector: Vector) -> Vector:
        """The product with `vector`."""
        return self.product(vector)


def from_matrix(matrix: Tensor, like: Vector | None = None) -> Operator:
    """The operator of a symmetric matrix, on Vectors of one tensor, or of the shapes of `like`.

    Raises:
        ValueError: the matrix is not square, not symmetric, not real and finite, or does not have the size of `like`.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel() or not matrix.is_floating_point():
        raise ValueError(
            f"the matrix must be square, real and not empty, got {matrix.dtype} of shape {tuple(matrix.shape)}"
        )
    if not _is_symmetric(matrix):
        raise ValueError("the matrix must be finite and symmetric; (A + A.T) / 2 may be what you want")
    template: Vector = [matrix.new_zeros(len(matrix))] if like is None else like
    if V.size(template) != len(matrix):
        raise ValueError(f"the matrix has {len(matrix)} rows, the template {V.size(template)} coordinates")
    return Operator(lambda vector: _multiply(matrix, vector), template)


def _is_symmetric(matrix: Tensor) -> bool:
    """Up to rounding; NaN compares as False."""
    return bool(((matrix - matrix.T).abs() <= 1e-4 * matrix.abs().amax(dim=(0, 1), keepdim=True)).all())


def _multiply(matrix: Tensor, vector: Vector) -> Vector:
    """The matrix times the coordinates of the vector one after the other."""
    parts = V.present(vector)
    flat = torch.cat([t.reshape(-1).to(matrix.device, matrix.dtype) for t in parts])
    pieces = (matrix @ flat).split([t.numel() for t in parts])
    return V.each(lambda ts: [p.view_as(t).to(t.device, t.dtype) for p, t in zip(pieces, ts, strict=True)], vector)
