"""Eigenpairs at the ends of a symmetric operator's spectrum, by a Lanczos method with full reorthogonalisation, thick restarts.

A cold search goes from one random vector (for a given number of products that sees further than a block does) and, where several
pairs are wanted, then looks for the copies of multiple eigenvalues, which one vector does not see. A warm one goes from a block
of vectors (band Lanczos: Ruhe, Math. Comp. 33, 1979) and first looks for eigenvectors that they miss. A restart keeps the best
Ritz vectors (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.checks import check_count
from flatwise.curvature.krylov import Krylov, fitted
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Record
from flatwise.curvature.wanted import Target, Wanted, Which, gaps
from flatwise.vectors import Vector

WARM, COLD = 5, 3
"""Products that go into looking for eigenvectors that the others miss. A warm start takes them first, one after the other from
its first vector and a random one: the given vectors may belong to eigenvalues that are no longer the largest, and their
residuals, small from the beginning, would not show it. A cold one takes them last, from another random vector, until they find
nothing."""

BLEND = 0.02
"""The share of the random vector in the first one of a warm start."""


@dataclass(frozen=True)
class EigenPairs:
    """Eigenvalues, largest algebraic first, and what belongs to them.

    Attributes:
        values: the eigenvalues, descending.
        vectors: unit eigenvectors in at least float32; their signs are arbitrary.
        residuals: `norm(H v - value * v)` of each pair, with what rounding and the operator's own error may add; an eigenvalue of
            H lies within this distance of the value.
        gaps: the distance of each value to the nearest other one that was seen, wanted or not; infinite where there was none. A
            vector is off by about residual / gap (the sine of the angle), its value by about residual^2 / gap.
        products: how many products with the operator it took.
        converged: whether the tolerance that was asked for was met.
        record: how the operator computes products: engine, precision, data, step. None where the operator has none.
    """

    values: list[float]
    vectors: list[Vector]
    residuals: list[float]
    gaps: list[float]
    products: int
    converged: bool
    record: Record | None = None


def top_eigenpairs(
    operator: Multiplies,
    k: int = 1,
    tol: float = 1e-2,
    start: Vector | Sequence[Vector] | None = None,
    *,
    which: Which = "largest",
    target: Target = "vectors",
    search: int | None = None,
    max_products: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
) -> EigenPairs:
    """Eigenvalues at an end of the spectrum of a symmetric operator, with their eigenvectors; by default the `k` largest.

    Stops when every residual is at most `tol` times the absolute value of the outermost wanted eigenvalue, or is rounding, and no
    other eigenvalue that is in sight can still turn out to be among the wanted ones.

    Args:
        operator: symmetric, such as a `hessian`, or anything else that `as_operator` takes.
        k: how many pairs, 1 to `operator.size`; from each end where both are wanted.
        tol: the relative residual, > 0; of the values if these are the target. Of both ends each has its own outermost value.
        start: a Vector or several near the eigenvectors that are wanted, such as those of some steps before.
        which: "largest" and "smallest" are algebraic (1 is larger than -5); "both" means `k` of each; "magnitude" the `k` of the
            largest absolute value. Values descend in any case: the smallest one is the last.
        target: "values" stops when the values are known to `tol`, as residuals and gaps tell. That takes fewer products than to
            know the vectors as well.
        search: products for eigenvectors that the others miss, >= 0. By default 5 with a start and, where k > 1, 3 without one.
            An eigenvector that a start misses is then found unless it is weak in a random vector and its eigenvalue less than a
            third above the others. 0 trusts the start.
        max_products: stop, with a warning, after so many products, at least as many as there are pairs; by default 50 for each,
            and 50.
        max_basis: how many Vectors may be held, by default 3 for each pair, and 20. A restart needs up to twice as many.
        seed: of the random vectors.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors, or k not an integer.
        ValueError: an argument out of its range, a start of another shape, or an operator that returns NaN or infinity.
    """
    operator = as_operator(operator, check=False)
    check_search(tol, which, target, search, seed)
    pairs, complaint = find(
        operator, checked_wanted(operator, k, which, target), tol, start, search, max_products, max_basis, seed
    )
    if complaint is not None:
        warnings.warn(complaint, stacklevel=2)
    return pairs


def find(
    operator: Operator,
    wanted: Wanted,
    tol: float,
    start: Vector | Sequence[Vector] | None,
    search: int | None,
    max_products: int | None,
    max_basis: int | None,
    seed: int,
) -> tuple[EigenPairs, str | None]:
    """`top_eigenpairs`, with what it would warn of."""
    starts = _starts(start, operator.like, seed, BLEND if search != 0 else 0.0)
    block = max(1, len(starts))
    budget = 50 * (wanted.count + 1) if max_products is None else max_products
    limit = 3 * max(block, wanted.count) + 20 if max_basis is None else max_basis
    _check_limits(wanted.count, block, budget, limit)
    krylov = Krylov(operator, starts, min(block, operator.size), itertools.count(seed + 1))
    run = _Search(krylov, wanted, tol, budget, limit)
    if starts:
        run.warm(WARM if search is None else search)
    else:
        run.cold(search if search is not None else COLD if wanted.count > 1 else 0)
    pairs = run.best()
    return pairs, None if pairs.converged else run.complaint(pairs)


class _Search:
    """Products until the wanted pairs are found, or the budget is spent."""

    def __init__(self, krylov: Krylov, wanted: Wanted, tol: float, budget: int, limit: int) -> None:
        self._krylov = krylov
        self._wanted = wanted
        self._tol = tol
        self._budget = budget
        self._limit = limit

    def warm(self, search: int) -> None:
        """First the search from the last vector, then all of them; where there are several, then copies as in a cold one."""
        enough = len(self._krylov.basis) + min(search, self._budget - self._wanted.count)
        while self._goes_on() and (self._krylov.products < enough or not self._has_found()):
            self._multiply(last=self._krylov.products < search)
        self.cold(min(search, COLD) if self._wanted.count > 1 else 0)

    def cold(self, search: int) -> None:
        """All that the vectors lead to, then what a random one adds, as long as it changes what was found."""
        before: Tensor | None = None
        while self._goes_on():
            if not self._has_found():
                self._multiply()
                continue
            found = self._values()
            if not search or (before is not None and self._are_alike(found, before)):
                return
            before = found
            self._look_elsewhere(search)

    def best(self) -> EigenPairs:
        """The wanted pairs as far as they are known."""
        krylov, wanted = self._krylov, self._wanted
        values, residuals, coefficients = krylov.ritz()
        largest = values.abs().max().item()
        residuals = residuals + (krylov.error + krylov.epsilon) * largest
        places = wanted.of(values)
        vectors = [krylov.combine(column) for column in coefficients[:, places].T]
        residuals[places] = krylov.doubted(values[places], vectors, residuals[places])
        return EigenPairs(
            values[places].tolist(),
            vectors,
            residuals[places].tolist(),
            gaps(values)[places].tolist(),
            krylov.products,
            wanted.found(values, residuals, self._tol, krylov.rounding * largest),
            krylov.record,
        )

    def complaint(self, pairs: EigenPairs) -> str:
        """Why pairs that have not converged have not."""
        error, outermost = self._krylov.error, self._wanted.outermost(torch.tensor(pairs.values))
        limit = f" (products are known to {error:.1g} only)" if error > self._tol else ""
        if self._krylov.doubt >= max(pairs.residuals):
            limit = " (that of differences of another length; kinks or noise come in)"
        return (
            f"not converged after {pairs.products} products: the largest residual is {max(pairs.residuals):.2g}, "
            f"wanted {self._tol:g} * {' and '.join(f'{value:.3g}' for value in outermost)}{limit}; "
            f"raise {'tol' if limit else 'max_products or tol'}"
        )

    def _goes_on(self) -> bool:
        return self._krylov.products < self._budget and not self._krylov.exhausted

    def _has_found(self) -> bool:
        if self._krylov.done < self._wanted.count:
            return False
        values, residuals, _ = self._krylov.ritz()
        return self._wanted.found(values, residuals, self._tol, self._krylov.noise * values.abs().max().item())

    def _are_alike(self, now: Tensor, before: Tensor) -> bool:
        return bool((now - before).abs().max() <= self._tol * min(self._wanted.outermost(now)))

    def _values(self) -> Tensor:
        values, _, _ = self._krylov.ritz()
        return values[self._wanted.of(values)]

    def _look_elsewhere(self, search: int) -> None:
        self._make_room()
        self._krylov.join_random()
        for _ in range(search):
            if self._goes_on():
                self._multiply(last=True)

    def _multiply(self, *, last: bool = False) -> None:
        self._make_room()
        self._krylov.multiply(last=last)

    def _make_room(self) -> None:
        """Keep the wanted pairs, and half of the others, where there is no room for more vectors."""
        krylov, wanted = self._krylov, self._wanted
        if len(krylov.basis) >= self._limit:
            values, _, _ = krylov.ritz()
            half = (krylov.done + wanted.count) // 2
            krylov.restart(wanted.of(values, half * wanted.k // wanted.count))


def _starts(start: Vector | Sequence[Vector] | None, like: Vector, seed: int, blend: float) -> list[Vector]:
    """The start vectors, the first of them last, with its random part: that is where the search begins."""
    if start is None or len(start) == 0:
        return []
    several = cast("Sequence[Vector]", [start] if _is_vector(start) else start)
    first, *others = [_checked(fitted(v, like, f"start vector {i}")) for i, v in enumerate(several)]
    return [*others, V.add(V.unit(first), V.unit(V.random_like(first, seed)), blend)]


def _is_vector(start: Vector | Sequence[Vector]) -> bool:
    return all(t is None or isinstance(t, Tensor) for t in start)


def _checked(start: Vector) -> Vector:
    if not torch.isfinite(V.norm(start)):
        raise ValueError("a start vector holds NaN or infinity")
    return start


def check_search(tol: Any, which: Any, target: Any, search: Any, seed: Any) -> None:
    """Refuse settings of a search that no operator could have; TypeError or ValueError."""
    for name, value, choices in (("which", which, get_args(Which)), ("target", target, get_args(Target))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if not 0 < tol < float("inf"):
        raise ValueError(f"tol must be a finite number > 0, got {tol}")
    if search is not None:
        check_count("search", search, 0)
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")


def checked_wanted(operator: Operator, k: Any, which: Which, target: Target) -> Wanted:
    """What is wanted of an operator; ValueError or TypeError where it cannot be."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r}")
    if not 1 <= k <= operator.size:
        raise ValueError(f"k must be from 1 to the size of the operator, {operator.size}, got {k}")
    wanted = Wanted(k, which, target)
    if wanted.count > operator.size:
        raise ValueError(f"the operator has {operator.size} eigenvalues, fewer than {k} from both ends")
    return wanted


def _check_limits(count: int, block: int, budget: int, limit: int) -> None:
    check_count("max_products", budget, 0)
    check_count("max_basis", limit, 0)
    if budget < count:
        raise ValueError(f"max_products must be at least k = {count}, got {budget}")
    least = max(block, count) + count + 3
    if limit < least:
        raise ValueError(f"max_basis must be at least {least} for k = {count} and these start vectors, got {limit}")
