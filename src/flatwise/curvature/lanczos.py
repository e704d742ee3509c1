"""The largest eigenpairs of a symmetric operator, by a Lanczos method with full reorthogonalisation and thick restarts.

It starts from one vector per wanted pair (band Lanczos: Ruhe, Math. Comp. 33, 1979), as from a single one a multiple eigenvalue
is seen once. A restart keeps the best Ritz vectors (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.checks import check_operator
from flatwise.curvature.krylov import Krylov, fitted
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Record
from flatwise.vectors import Vector

SEARCH = 5
"""Products that a warm start takes first, one after the other from its first vector and a random one: the given vectors may
belong to eigenvalues that are no longer the largest, and their residuals, small from the beginning, would not show it."""

BLEND = 0.02
"""The share of the random vector in that one."""


@dataclass(frozen=True)
class EigenPairs:
    """Eigenvalues, largest algebraic first, and what belongs to them.

    Attributes:
        values: the eigenvalues, descending.
        vectors: unit eigenvectors in at least float32; their signs are arbitrary.
        residuals: `norm(H v - value * v)` of each pair, with what the operator's own error may add; an eigenvalue of H lies
            within this distance of the value.
        products: how many products with the operator it took.
        converged: whether every residual is within the tolerance that was asked for.
        record: how the operator computes products: engine, precision, data, step. None where the operator has none.
    """

    values: list[float]
    vectors: list[Vector]
    residuals: list[float]
    products: int
    converged: bool
    record: Record | None = None


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    tol: float = 1e-2,
    start: Vector | Sequence[Vector] | None = None,
    *,
    max_products: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
) -> EigenPairs:
    """The `k` largest eigenvalues of a symmetric operator (algebraic: 1 is larger than -5), with their eigenvectors.

    Stops when every residual is at most `tol` times the absolute value of the largest eigenvalue, or is rounding.

    Args:
        operator: symmetric, such as a `hessian`.
        k: how many pairs, 1 to `operator.size`.
        tol: the relative residual, > 0.
        start: a Vector or several near the eigenvectors that are wanted, such as those of some steps before. An eigenvector
            that they miss is found unless it is weak in a random vector and its eigenvalue less than a third above the others.
        max_products: stop, with a warning, after so many products, at least k; by default 50 * (k + 1).
        max_basis: how many Vectors may be held, by default 3 * k + 20. A restart needs up to twice as many.
        seed: of the random start vectors.

    Raises:
        TypeError: `operator` is not an Operator, or k not an integer.
        ValueError: an argument out of its range, a start of another shape, or an operator that returns NaN or infinity.
    """
    _check(operator, k, tol)
    starts = _starts(start, operator.like, seed)
    block = max(k, len(starts))
    budget = 50 * (k + 1) if max_products is None else max_products
    limit = 3 * block + 20 if max_basis is None else max_basis
    _check_limits(k, block, budget, limit)
    krylov = Krylov(operator, starts, min(block, operator.size), itertools.count(seed + 1))
    search = min(SEARCH, budget - k) if starts else 0
    while krylov.products < budget and not _believable(krylov, k, tol, block + search):
        if len(krylov.basis) == limit:
            krylov.restart(keep=(krylov.done + k) // 2)
        krylov.multiply(last=krylov.products < search)
    pairs = _best(krylov, k, tol, operator)
    if not pairs.converged:
        warnings.warn(_complaint(pairs, tol, operator.error), stacklevel=2)
    return pairs


def _believable(krylov: Krylov, k: int, tol: float, enough: int) -> bool:
    return krylov.exhausted or (krylov.products >= enough and _converged(krylov, k, tol))


def _converged(krylov: Krylov, k: int, tol: float) -> bool:
    if krylov.done < k:
        return False
    values, residuals, _ = krylov.ritz()
    return _are_small(residuals[:k], values, tol, krylov.noise)


def _are_small(residuals: Tensor, values: Tensor, tol: float, noise: float) -> bool:
    return residuals.max().item() <= max(tol * abs(values[0].item()), noise * values.abs().max().item())


def _best(krylov: Krylov, k: int, tol: float, operator: Operator) -> EigenPairs:
    values, residuals, coefficients = krylov.ritz()
    residuals = residuals[:k] + operator.error * values.abs().max()
    converged = krylov.done >= k and _are_small(residuals, values, tol, krylov.rounding)
    vectors = [krylov.combine(column) for column in coefficients[:, :k].T]
    return EigenPairs(values[:k].tolist(), vectors, residuals.tolist(), krylov.products, converged, operator.record)


def _complaint(pairs: EigenPairs, tol: float, error: float) -> str:
    limit = f" (products are known to {error:.1g} only)" if error > tol else ""
    return (
        f"not converged after {pairs.products} products: the largest residual is {max(pairs.residuals):.2g}, "
        f"wanted {tol:g} * {abs(pairs.values[0]):.3g}{limit}; raise {'tol' if limit else 'max_products or tol'}"
    )


def _starts(start: Vector | Sequence[Vector] | None, like: Vector, seed: int) -> list[Vector]:
    """The start vectors, the first of them last, with its random part: that is where the search begins."""
    if start is None or len(start) == 0:
        return []
    several = cast("Sequence[Vector]", [start] if _is_vector(start) else start)
    first, *others = [_checked(fitted(v, like, f"start vector {i}")) for i, v in enumerate(several)]
    return [*others, V.add(V.unit(first), V.unit(V.random_like(first, seed)), BLEND)]


def _is_vector(start: Vector | Sequence[Vector]) -> bool:
    return all(t is None or isinstance(t, Tensor) for t in start)


def _checked(start: Vector) -> Vector:
    if not torch.isfinite(V.norm(start)):
        raise ValueError("a start vector holds NaN or infinity")
    return start


def _check(operator: Any, k: Any, tol: float) -> None:
    check_operator(operator)
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r}")
    if not 1 <= k <= operator.size:
        raise ValueError(f"k must be from 1 to the size of the operator, {operator.size}, got {k}")
    if not 0 < tol < float("inf"):
        raise ValueError(f"tol must be a finite number > 0, got {tol}")


def _check_limits(k: int, block: int, budget: int, limit: int) -> None:
    if budget < k:
        raise ValueError(f"max_products must be at least k = {k}, got {budget}")
    if limit < block + k + 3:
        raise ValueError(f"max_basis must be at least {block + k + 3} for k = {k} and these start vectors, got {limit}")
