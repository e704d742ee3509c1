"""The eigenpairs at the top along a training run: each search starts from the vectors of the one before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flatwise import vectors as V
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.checks import check_count
from flatwise.curvature.krylov import fitted
from flatwise.curvature.lanczos import EigenPairs, check_search, checked_wanted, find
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Record
from flatwise.curvature.wanted import Target
from flatwise.vectors import Vector

SAME = 0.5
"""The |cos| from which on a vector is taken for one of those before, turned."""


class EigenTracker:
    """Follows the largest eigenpairs of an operator that changes slowly, such as the Hessian while training.

    The signs of the vectors are those that agree with the vectors before. A pair keeps its identity where eigenvalues cross.

    Args:
        k: how many pairs, >= 1.
        tol: as for `top_eigenpairs`.
        target: as for `top_eigenpairs`; "values" takes fewer products.
        threshold: follow every eigenvalue above it, such as 2 / lr, and the first below, at least `k` of them and at most `most`.
        most: so many, >= k.
        search: as for `top_eigenpairs`: products in each update for eigenvectors that were not there before.
        budget: products for each update, >= k. What it was too small for is in `shortfall`; without a budget a warning says so.
        seed: of the random vectors, other ones at each update.

    Attributes:
        pairs: what the last update found, None before the first.
        identities: a number for each of these pairs, the same from update to update as long as the vector turns by less than 60
            degrees in between; a pair that was not there before has a new one.
        shortfall: what the last update could not do within the budget, in words; None if it did everything.
        updates: how many updates there were.
        products: how many products all of them took.
    """

    def __init__(
        self,
        k: int = 1,
        tol: float = 1e-2,
        *,
        target: Target = "vectors",
        threshold: float | None = None,
        most: int = 50,
        search: int | None = None,
        budget: int | None = None,
        seed: int = 0,
    ) -> None:
        check_count("k", k, 1)
        check_count("most", most, k)
        check_search(tol, "largest", target, search, seed)
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"threshold must be a finite number or None, got {threshold}")
        if budget is not None:
            check_count("budget", budget, k)
        self.k = k
        self.tol = tol
        self.target: Target = target
        self.threshold = threshold
        self.most = most
        self.search = search
        self.budget = budget
        self.seed = seed
        self.pairs: EigenPairs | None = None
        self.identities: list[int] = []
        self.shortfall: str | None = None
        self.updates = 0
        self.products = 0
        self._identified = 0
        self._searches = 0

    def update(self, operator: Multiplies) -> EigenPairs:
        """Find the largest eigenpairs of the operator as it is now.

        Raises:
            TypeError, ValueError: as `top_eigenpairs`.
        """
        operator = as_operator(operator, check=False)
        known = [] if self.pairs is None else self.pairs.vectors
        before = [fitted(v, operator.like, f"start vector {i}") for i, v in enumerate(known)]
        pairs, complaint = self._found(operator, before)
        identities, vectors = self._identified_with(before, pairs.vectors)
        told = None if complaint is None else complaint.replace("max_products", "budget")
        self.shortfall = told or self._missing(pairs, operator)
        if self.shortfall and self.budget is None:
            warnings.warn(self.shortfall, stacklevel=2)
        self.pairs, self.identities = replace(pairs, vectors=vectors), identities
        self.products += pairs.products
        self.updates += 1
        return self.pairs

    # --- finding ------------------------------------------------------------------------------------------------------

    def _found(self, operator: Operator, before: Sequence[Vector]) -> tuple[EigenPairs, str | None]:
        """As many as are wished for; twice as many, and so on, as long as all of them are above the threshold."""
        pairs, complaint = self._searched(operator, self._wished(operator), before, 0)
        while complaint is None and (more := self._more(pairs, operator)):
            pairs, complaint = self._searched(operator, more, pairs.vectors, pairs.products)
        return self._trimmed(pairs), complaint

    def _searched(
        self, operator: Operator, k: int, start: Sequence[Vector], spent: int
    ) -> tuple[EigenPairs, str | None]:
        wanted = checked_wanted(operator, k, "largest", self.target)
        budget = None if self.budget is None else self.budget - spent
        # Other random vectors in each search: what one misses, the next may see.
        self._searches += 1
        seed = self.seed + 1000 * (self._searches - 1)
        pairs, complaint = find(operator, wanted, self.tol, start, self.search, budget, None, seed)
        return replace(pairs, products=spent + pairs.products), complaint

    def _wished(self, operator: Operator) -> int:
        """One more than were above the threshold, if there is room for them."""
        wished = max(self.k, 0 if self.pairs is None else self._above(self.pairs) + 1)
        return min(wished, operator.size, self.most, wished if self.budget is None else self.budget)

    def _more(self, pairs: EigenPairs, operator: Operator) -> int:
        """How many to look for, where all of these are above the threshold; 0 where that is not so, or there is no room."""
        k = len(pairs.values)
        room = self.most if self.budget is None else min(self.most, self.budget - pairs.products)
        more = min(2 * k, operator.size, room)
        return more if self._above(pairs) == k and more > k else 0

    def _above(self, pairs: EigenPairs) -> int:
        return 0 if self.threshold is None else sum(value > self.threshold for value in pairs.values)

    def _trimmed(self, pairs: EigenPairs) -> EigenPairs:
        """The pairs above the threshold and the first below; `k` at least."""
        k = max(self.k, self._above(pairs) + 1)
        lists: dict[str, Any] = {name: getattr(pairs, name)[:k] for name in ("values", "vectors", "residuals", "gaps")}
        return replace(pairs, **lists)

    def _missing(self, pairs: EigenPairs, operator: Operator) -> str | None:
        if self._above(pairs) < len(pairs.values) or len(pairs.values) == operator.size:
            return None
        limit = f"most = {self.most}" if len(pairs.values) == self.most else f"a budget of {self.budget} products"
        return f"all {len(pairs.values)} eigenvalues that {limit} allowed for are above {self.threshold:g}; there may be more"

    # --- following ----------------------------------------------------------------------------------------------------

    def _identified_with(self, before: Sequence[Vector], after: Sequence[Vector]) -> tuple[list[int], list[Vector]]:
        """The identity of each vector, and the vectors with the signs of those that they were."""
        cosines = {(i, j): V.dot(v, b).item() for i, v in enumerate(after) for j, b in enumerate(before)}
        identities, vectors = [-1] * len(after), list(after)
        for i, j in sorted(cosines, key=lambda ij: -abs(cosines[ij])):
            if abs(cosines[i, j]) >= SAME and identities[i] < 0 and self.identities[j] not in identities:
                identities[i] = self.identities[j]
                vectors[i] = V.scale(after[i], -1.0) if cosines[i, j] < 0 else after[i]
        return [identity if identity >= 0 else self._new() for identity in identities], vectors

    def _new(self) -> int:
        self._identified += 1
        return self._identified - 1

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly like the uninterrupted one; plain lists, numbers and tensors."""
        return {
            "updates": self.updates,
            "products": self.products,
            "identities": list(self.identities),
            "identified": self._identified,
            "searches": self._searches,
            "shortfall": self.shortfall,
            "pairs": None if self.pairs is None else _as_plain(self.pairs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the `state_dict` of a tracker with the same arguments."""
        pairs = state["pairs"]
        self.pairs = None if pairs is None else _from_plain(pairs)
        self.updates, self.products = state["updates"], state["products"]
        self.identities, self._identified = list(state["identities"]), state["identified"]
        self._searches, self.shortfall = state["searches"], state["shortfall"]


def _as_plain(pairs: EigenPairs) -> dict[str, Any]:
    return vars(pairs) | {"record": None if pairs.record is None else vars(pairs.record).copy()}


def _from_plain(pairs: dict[str, Any]) -> EigenPairs:
    record = pairs.get("record")
    return replace(EigenPairs(**pairs), record=None if record is None else Record(**record))
