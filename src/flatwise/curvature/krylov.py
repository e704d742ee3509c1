"""A growing orthonormal basis of Vectors and the operator's matrix in it: the arithmetic of the Lanczos method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.operator import Operator
from flatwise.vectors import Vector

ROUNDING = 16
"""In units of the machine epsilon: a remainder of a product, or a residual, is rounding when it is smaller than this."""


class Krylov:
    """An orthonormal basis Q whose first `done` vectors have met the operator H: `H Q[:done] = Q matrix`.

    The vectors after those are pending. The identity holds to rounding, and survives a restart, so that the residual of a Ritz
    pair is known without another product. Basis vectors are in at least float32, `matrix` is in float64.

    Args:
        operator: H.
        starts: the first vectors; what depends on the ones before is left out.
        size: how many vectors to start with; filled up with random ones.
        seeds: of random vectors, for filling up and for leaving an invariant subspace.
    """

    def __init__(self, operator: Operator, starts: Sequence[Vector], size: int, seeds: Iterator[int]) -> None:
        self.basis: list[Vector] = []
        self.matrix = torch.zeros(0, 0, dtype=torch.float64)
        self.products = 0
        self.doubt = 0.0
        self.epsilon = V.epsilon(operator.like)
        self.rounding = ROUNDING * min(self.epsilon, torch.finfo(torch.float32).eps)
        self.noise = max(self.rounding, operator.error)
        self.error = operator.error
        self.record = operator.record
        self._operator = operator
        self._seeds = seeds
        for start in starts:
            self._join(start)
        while len(self.basis) < size:
            self.join_random()

    @property
    def done(self) -> int:
        """How many vectors of the basis have met the operator."""
        return self.matrix.shape[1]

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space, so that the Ritz pairs are exact."""
        return self.done == self._operator.size

    def multiply(self, *, last: bool = False) -> None:
        """Take the product with the first pending vector, or the last one; what is new in it joins the basis at its end."""
        while self.done == len(self.basis):  # an invariant subspace: what lies outside is found from a random vector
            self.join_random()
        if last:
            self._advance_last()
        image = self._image(self.basis[self.done])
        scale = torch.cat([self.matrix.reshape(-1), V.norm(image).reshape(1).to("cpu", torch.float64)]).abs().max()
        column = self._orthogonalize(image)
        self.matrix = torch.cat([self.matrix, column[:, None]], dim=1)
        if (rest := V.norm(image).item()) > self.noise * scale:
            V.scale_(image, 1 / rest)
            self._append(image, coupling=rest)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """The Ritz values (descending), the norms of their residuals, and the coefficients of their vectors (columns)."""
        square = self.matrix[: self.done]
        values, coefficients = torch.linalg.eigh((square + square.T) / 2)
        values, coefficients = values.flip(0), coefficients.flip(1)
        residuals = self.matrix @ coefficients
        residuals[: self.done] -= coefficients * values
        return values, torch.linalg.vector_norm(residuals, dim=0), coefficients

    def combine(self, coefficients: Tensor) -> Vector:
        """The combination of the first basis vectors with these coefficients, normalised once more against rounding."""
        result = V.zeros_like(self.basis[0])
        for vector, coefficient in zip(self.basis, coefficients.tolist()):
            V.add_(result, vector, coefficient)
        return V.unit(result)

    def doubted(self, values: Tensor, vectors: Sequence[Vector], residuals: Tensor) -> Tensor:
        """The residuals, or those by the operator's second way to take products, where it has one, if they are larger."""
        if (again := self._operator.second) is None:
            return residuals
        self.products += len(vectors)
        images = [fitted(again(narrowed(v, self._operator.like)), self._operator.like, "the product") for v in vectors]
        others = [V.norm(V.add(image, v, -x)).item() for image, v, x in zip(images, vectors, values.tolist())]
        self.doubt = max(others)
        return torch.maximum(residuals, torch.tensor(others, dtype=residuals.dtype))

    def restart(self, keep: Tensor) -> None:
        """Go on with the Ritz vectors at these places, and the pending vectors, instead of the whole basis."""
        values, _, coefficients = self.ritz()
        best = coefficients[:, keep]
        self.basis = [self.combine(column) for column in best.T] + self.basis[self.done :]
        self.matrix = torch.cat([torch.diag(values[keep]), self.matrix[self.done :] @ best])

    def _advance_last(self) -> None:
        """Move the last pending vector before the other ones."""
        order = [*range(self.done), len(self.basis) - 1, *range(self.done, len(self.basis) - 1)]
        self.basis = [self.basis[i] for i in order]
        self.matrix = self.matrix[order]

    def _join(self, vector: Vector) -> None:
        """Add what is new in a vector to the basis, if anything is."""
        rest = V.clone(vector)
        self._orthogonalize(rest)
        if (length := V.norm(rest).item()) > self.rounding * V.norm(vector).item():
            V.scale_(rest, 1 / length)
            self._append(rest, coupling=0.0)

    def join_random(self) -> None:
        """Add what is new in a random vector, at the end of the pending ones."""
        self._join(widened(V.random_like(self._operator.like, next(self._seeds))))

    def _append(self, vector: Vector, coupling: float) -> None:
        """Add a unit vector, of which the last product had so much and those before nothing."""
        row = torch.zeros(1, self.done, dtype=torch.float64)
        row[:, -1:] = coupling
        self.basis.append(vector)
        self.matrix = torch.cat([self.matrix, row])

    def _orthogonalize(self, vector: Vector) -> Tensor:
        """Take the basis out of `vector`, in place and twice, and return the coefficients."""
        total = torch.zeros(len(self.basis), dtype=torch.float64)
        for _ in range(2 if self.basis else 0):
            coefficients = torch.stack([V.dot(q, vector) for q in self.basis])
            for q, coefficient in zip(self.basis, coefficients, strict=True):
                V.add_(vector, q, -coefficient)
            total += coefficients.to("cpu", torch.float64)
        return total

    def _image(self, vector: Vector) -> Vector:
        """The product, in storage of its own, finite, and None where the template is."""
        self.products += 1
        image = fitted(
            self._operator(narrowed(vector, self._operator.like)), self._operator.like, "the operator's product"
        )
        if not torch.isfinite(V.norm(image)):
            raise ValueError(
                f"product {self.products} with the operator is NaN or infinite; are the weights still finite?"
            )
        return image


def fitted(vector: Sequence[Tensor | None], like: Vector, name: str) -> Vector:
    """A copy of `vector` in at least float32, on the devices of `like`: zeros where it is None, None where `like` is.

    Raises:
        ValueError: it has not the shapes of `like`.
    """
    if len(vector) != len(like):
        raise ValueError(f"{name} has {len(vector)} entries, the operator's vectors have {len(like)}")
    if any(v is not None and t is not None and v.shape != t.shape for v, t in zip(vector, like, strict=True)):
        raise ValueError(f"{name} has other shapes than the operator's vectors")
    result = V.zeros_like(widened(like))
    detached = [None if t is None else t.detach() for t in vector]
    V.copy_(result, V.restrict(detached, [t is not None for t in like]))
    return result


def widened(vector: Vector) -> Vector:
    """The vector in at least float32: a basis in half precision would not stay orthogonal."""
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in vector]


def narrowed(vector: Vector, like: Vector) -> Vector:
    """The vector in the dtypes of `like`."""
    return [None if q is None or t is None else q.to(t.dtype) for q, t in zip(vector, like, strict=True)]
