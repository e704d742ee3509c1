"""Lanczos with one product a step, each with the Hessian of that step's batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.products import difference_length, hessian_product, where_present, zero_where_absent
from flatwise.methods.ritz import Search, combination, largest, orthogonalise
from flatwise.vectors import Vector

COUNT, BASIS, ENTRY = "lanczos_count", "lanczos.{}", "lanczos_{}_{}"


def is_open(state: State) -> bool:
    """Whether a space is still to grow."""
    return state.numbers.get(COUNT, -1.0) >= 0


@dataclass(frozen=True)
class StochasticLanczos:
    """A Krylov space that grows by a vector a step, and the largest Ritz vector when it is complete.

    Each column of the projected matrix is of another batch, so the vector belongs to more data than one batch, at the
    same number of products; the weights move meanwhile. The basis is part of the checkpoint.

    Args:
        products: the dimension of the space.
    """

    products: int

    def remember(self, state: State, like: Vector) -> None:
        """Make room in the state."""
        state.vectors |= {BASIS.format(i): V.zeros_like(like) for i in range(self.products)}
        state.numbers |= {COUNT: -1.0}
        state.numbers |= {ENTRY.format(i, j): 0.0 for j in range(self.products) for i in range(j + 1)}

    def begin(self, start: Vector, state: State) -> None:
        """A new space, from that vector on."""
        state.numbers[COUNT] = 0.0
        _remember(0, V.unit(start), state)

    def product(self, base: Vector, state: State, search: Search) -> Generator[At, Evaluation, Vector | None]:
        """One product; the Ritz vector if it was the last."""
        count = int(state.numbers[COUNT])
        known = [where_present(state.vectors[BASIS.format(i)], state.weights) for i in range(count + 1)]
        basis = [where_present(vector, base) for vector in known]
        length = difference_length(state, base, search.longer)
        remainder = yield from hessian_product(base, basis[-1], length)
        column = torch.stack([V.dot(b, remainder) for b in basis])
        size = orthogonalise(remainder, basis, column)
        state.numbers |= {ENTRY.format(i, count): entry for i, entry in enumerate(column.tolist())}
        if count + 1 < self.products and bool(size > 0):
            V.scale_(remainder, V.reciprocal(size))
            _remember(count + 1, remainder, state)
            state.numbers[COUNT] += 1
            return None
        state.numbers[COUNT] = -1.0
        return self._ritz_vector(known, state, float(size), search)

    def _ritz_vector(self, basis: list[Vector], state: State, coupling: float, search: Search) -> Vector:
        size = len(basis)
        projected = torch.zeros(size, size, dtype=torch.float64)
        for j in range(size):
            for i in range(j + 1):
                projected[i, j] = state.numbers[ENTRY.format(i, j)]
        coordinates = largest(torch.nan_to_num(projected, posinf=0.0, neginf=0.0), size, search)
        search.residual = abs(coupling * coordinates[-1])
        vector = combination([V.clone(b) for b in basis], coordinates)
        V.scale_(vector, V.reciprocal(V.norm(vector)))
        return vector


def _remember(place: int, vector: Vector, state: State) -> None:
    name = BASIS.format(place)
    state.vectors[name] = zero_where_absent(vector, state.vectors[name])
