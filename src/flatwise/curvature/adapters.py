"""Operators of other libraries as they are: of curvlinops, of SciPy, matrices, functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.operator import Operator, from_matrix
from flatwise.objective import Objective
from flatwise.vectors import Vector

Multiplies: TypeAlias = Any
"""An Operator, or whatever `as_operator` makes one of."""

ASYMMETRY = 1e-2
"""Of an operator in norm: above it is no rounding, not even of half precision."""


def as_operator(operator: Any, like: Vector | None = None, *, check: bool = True) -> Operator:
    """Whatever multiplies a vector with a symmetric matrix, as an Operator. Everything that measures curvature takes it directly.

    Args:
        operator: an Operator; a matrix of torch or NumPy; something with a shape (n, n) and `@` for flat tensors, such as the
            GGN, Fisher, KFAC and Hessian operators of curvlinops, or for flat arrays, such as SciPy's LinearOperator and sparse
            matrices; or a function from Vector to Vector, which needs `like`.
        like: a template Vector, such as `objective.weights`: results have its shapes. By default one flat tensor.
        check: whether to make sure, by two products, that it is symmetric. Matrices are always checked; what is measured of
            something that was not made an Operator by this function is not.

    Raises:
        TypeError: nothing of this kind, or a function without `like`.
        ValueError: it is not square, not symmetric, not real, or does not have the size of `like`.
    """
    if isinstance(operator, Operator):
        if like is not None:
            raise TypeError("an Operator has a template of its own; leave like out")
        return operator
    if isinstance(operator, Tensor) or type(operator).__module__ == "numpy":
        return from_matrix(operator if isinstance(operator, Tensor) else torch.tensor(operator), like)
    found = _multiplying(operator, like) if hasattr(operator, "__matmul__") else _calling(operator, like)
    if check:
        _check_symmetry(found)
    return found


def _calling(function: Any, like: Vector | None) -> Operator:
    if isinstance(function, Objective):
        raise TypeError("operator must be an Operator, got the Objective itself; pass hessian(objective)")
    if not callable(function) or isinstance(function, torch.nn.Module):
        raise TypeError(
            "operator must be an Operator, as hessian or from_matrix make it, or a square matrix or linear operator that can be "
            f"multiplied by @, got {type(function).__name__}"
        )
    if like is None:
        raise TypeError("a function needs a template of its Vectors: as_operator(function, like=objective.weights)")
    return Operator(cast("Callable[[Vector], Vector]", function), like)


def _multiplying(thing: Any, like: Vector | None) -> Operator:
    """Of something that can be multiplied by @ with flat tensors, or with flat arrays."""
    shape = tuple(getattr(thing, "shape", ()))
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"the operator must be square and not empty, got {type(thing).__name__} of shape {shape}")
    place, multiply = _currency(thing)
    if not place.is_floating_point():
        raise ValueError(f"the operator must be real, of a floating point type, got {place.dtype}")
    template: Vector = [place.new_zeros(shape[0])] if like is None else like
    if V.size(template) != shape[0]:
        raise ValueError(f"the operator has {shape[0]} rows, the template {V.size(template)} coordinates")
    return Operator(lambda v: _split(multiply(_flat(v, place)), template), template)


def _currency(thing: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """An empty tensor of the dtype and on the device of its vectors, and the product with a flat tensor like it."""
    if isinstance(thing.dtype, torch.dtype):
        place = torch.empty(0, dtype=thing.dtype, device=getattr(thing, "device", None))
        return place, lambda flat: (thing @ flat).detach()
    name = "float64" if thing.dtype is None else str(thing.dtype)  # SciPy's may leave it open
    return torch.empty(0, dtype=getattr(torch, name)), lambda flat: torch.tensor(thing @ flat.numpy())


def _flat(vector: Vector, like: Tensor) -> Tensor:
    return torch.cat([t.reshape(-1).to(like) for t in V.present(vector)])


def _split(flat: Tensor, like: Vector) -> Vector:
    pieces = flat.split([t.numel() for t in V.present(like)])
    return V.each(lambda ts: [p.view_as(t).to(t) for p, t in zip(pieces, ts, strict=True)], like)


def _check_symmetry(operator: Operator) -> None:
    """By u'Hv and v'Hu of random vectors: they differ as the norm of `H - H'` says, and products are as long as that of H."""
    u, v = (V.random_like(operator.like, seed) for seed in (0, 1))
    along, across = operator(v), operator(u)
    apart = (V.dot(u, along) - V.dot(v, across)).abs()
    if not apart <= ASYMMETRY * (V.norm(along) + V.norm(across)):
        raise ValueError(
            f"the operator is not symmetric: u'Hv = {float(V.dot(u, along)):.6g}, but v'Hu = {float(V.dot(v, across)):.6g}"
        )
