"""Operators made of operators: blocks, multiples, sums, shifts, and changes of scale. All of them are symmetric again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from flatwise import vectors as V
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.krylov import fitted
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Record
from flatwise.vectors import Vector


def restricted(operator: Multiplies, places: Sequence[bool]) -> Operator:
    """A principal block of an operator, of the tensors at `places` alone. Vectors are None elsewhere; the size is the block's.

    A product costs one of the whole operator; `hessian_blocks` computes blocks of a Hessian with less. Its `error` is that of the
    whole operator, relative to the whole one's largest eigenvalue.

    Args:
        operator: an Operator, or anything else that `as_operator` takes.
        places: for each tensor of its vectors, whether it belongs to the block; `by_layer`, `by_group` and `matching` say.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors.
        ValueError: as many places as tensors are needed, and one of them must be in the block.
    """
    operator = as_operator(operator, check=False)
    check_places(places, operator.like)

    def product(vector: Vector) -> Vector:
        return V.restrict(operator(_filled(vector, operator.like)), places)

    return _derived(product, V.restrict(operator.like, places), operator)


def scaled(operator: Multiplies, factor: float) -> Operator:
    """`factor * H`; -1 turns the smallest eigenvalues into the largest.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors.
    """
    operator = as_operator(operator, check=False)
    return _derived(lambda vector: V.scale(operator(vector), factor), operator.like, operator)


def shifted(operator: Multiplies, shift: float) -> Operator:
    """`H + shift * I`: the Hessian of the loss with weight decay `shift`, for example.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors.
    """
    operator = as_operator(operator, check=False)
    return _derived(lambda vector: V.add(operator(vector), vector, shift), operator.like, operator)


def combined(first: Multiplies, second: Multiplies, factor: float = 1.0) -> Operator:
    """`first + factor * second`: the sum, and with -1 the difference. A product costs one of each.

    Its `error` is the larger one of both. Where they cancel, the error relative to the difference is larger.

    Raises:
        TypeError: one of them is nothing that multiplies Vectors.
        ValueError: their vectors have other shapes.
    """
    first, second = (as_operator(operator, check=False) for operator in (first, second))
    if _shapes(first.like) != _shapes(second.like):
        raise ValueError("the operators work on vectors of different shapes, so they have no sum")
    result = _derived(lambda vector: V.add(first(vector), second(vector), factor), first.like, first)
    return replace(result, error=max(first.error, second.error))


def congruent(operator: Multiplies, scales: Sequence[torch.Tensor | None]) -> Operator:
    """`D H D` with the diagonal matrix D: the operator in coordinates in which `D x` stands for `x`.

    Where `scales` is None the result's vectors are None too, as if the scale were 0.

    Args:
        operator: an Operator, or anything else that `as_operator` takes.
        scales: the diagonal of D.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors.
        ValueError: the scales have not the shapes of the operator's vectors, or are not finite.
    """
    operator = as_operator(operator, check=False)
    diagonal = fitted(scales, operator.like, "the vector of scales")
    diagonal = V.restrict(diagonal, [s is not None for s in scales])
    if not torch.isfinite(V.norm(diagonal)):
        raise ValueError("the scales hold NaN or infinity")
    block = restricted(operator, [s is not None for s in diagonal])
    return _derived(lambda vector: times(diagonal, block(times(diagonal, vector))), block.like, operator)


def times(scales: Sequence[torch.Tensor | None], vector: Vector) -> Vector:
    """The entrywise product, in the dtypes of the vector; None where either is None."""
    both = zip(scales, vector, strict=True)
    return [None if s is None or v is None else (s.to(v.device) * v).to(v.dtype) for s, v in both]


def noted(operator: Operator, note: str) -> Operator:
    """The operator with a note in its record, after the reason."""
    return replace(operator, record=noted_record(operator.record, note))


def noted_record(record: Record | None, note: str) -> Record | None:
    """The record with a note after the reason."""
    return None if record is None else replace(record, reason=f"{record.reason}; {note}")


def check_places(places: Sequence[bool], like: Vector) -> None:
    """Refuse what chooses no block of vectors like these."""
    if len(places) != len(like):
        raise ValueError(f"{len(places)} places were given, the operator's vectors have {len(like)} entries")
    if not V.size(V.restrict(like, places)):
        raise ValueError("the block is empty: no place with a tensor was chosen")


def _derived(product: Callable[[Vector], Vector], like: Vector, operator: Operator) -> Operator:
    record = operator.record
    return Operator(product, like, operator.error, record and replace(record, parameters=V.size(like)))


def _filled(vector: Vector, like: Vector) -> Vector:
    """Zeros in place of None wherever the template has a tensor."""
    both = zip(vector, like, strict=True)
    return [torch.zeros_like(t) if v is None and t is not None else v for v, t in both]


def _shapes(vector: Vector) -> list[torch.Size | None]:
    return [None if t is None else t.shape for t in vector]
