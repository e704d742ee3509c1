"""Random directions that are as long as the weights, filter by filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.objective import Objective
from flatwise.objective.arguments import fitting
from flatwise.vectors import Vector

OneDimensional: TypeAlias = Literal["zero", "scaled"]


def random_direction(objective: Objective, seed: int = 0, *, one_dimensional: OneDimensional = "zero") -> Vector:
    """A normally distributed direction, normalised by filters (arXiv 1712.09913): at length 1 it is as long as the weights.

    Args:
        objective: whose weights.
        seed: of the random numbers; the same for the same seed, also with sharded weights.
        one_dimensional: what becomes of biases and of the weights of normalisation layers, see `filter_normalised`.
    """
    return filter_normalised(V.random_like(objective.weights, seed), objective.weights, one_dimensional=one_dimensional)


def filter_normalised(
    direction: Sequence[Tensor | None], weights: Sequence[Tensor | None], *, one_dimensional: OneDimensional = "zero"
) -> Vector:
    """The direction with the norm of each filter of the weights (arXiv 1712.09913), so that scales between layers cancel.

    A filter is what a tensor holds at one place of its first dimension: all that leads to one output.

    Args:
        direction: what is scaled; None stays None.
        weights: of the same shapes.
        one_dimensional: "zero", as in the paper, leaves biases and the weights of normalisation layers where they are; "scaled"
            gives each of them, as a whole, the norm of its weights.

    Raises:
        ValueError: another word, or a direction of another shape.
    """
    if one_dimensional not in get_args(OneDimensional):
        raise ValueError(f'one_dimensional must be "zero" or "scaled", got {one_dimensional!r}')
    if len(direction) != len(weights) or any(_differ(d, w) for d, w in zip(direction, weights)):
        raise ValueError("the direction must have the shapes of the weights")
    both = zip(direction, weights, strict=True)
    return [None if d is None or w is None else _scaled(d, w, one_dimensional) for d, w in both]


def _scaled(direction: Tensor, weights: Tensor, one_dimensional: OneDimensional) -> Tensor:
    if weights.ndim > 1:
        dimensions = tuple(range(1, weights.ndim))
        return direction * (_norms(weights, dimensions) * V.reciprocal(_norms(direction, dimensions)))
    if one_dimensional == "zero":
        return torch.zeros_like(direction)
    return direction * (V.norm([weights]) * V.reciprocal(V.norm([direction]))).to(direction)


def _norms(t: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(t.detach(), dim=dimensions, keepdim=True)


def _differ(direction: Tensor | None, weights: Tensor | None) -> bool:
    return direction is not None and weights is not None and direction.shape != weights.shape


def checked_direction(objective: Objective, direction: Any, name: str) -> Vector:
    """A copy of a direction, with zeros for None, on the devices of the weights.

    Raises:
        ValueError: another shape, NaN or infinity in it, or nothing but zeros.
    """
    found = V.clone(fitting(direction, objective.parameters()))
    norm = float(V.norm(found))
    if not 0 < norm < float("inf"):
        raise ValueError(f"the direction {name!r} {'is zero' if norm == 0 else 'holds NaN or infinity'}")
    return found
