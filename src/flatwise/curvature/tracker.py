"""The eigenpairs at the top along a training run: each search starts from the vectors of the one before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flatwise import vectors as V
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.checks import check_count
from flatwise.curvature.lanczos import EigenPairs, checked_wanted, complaint, find
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
        threshold: follow every eigenvalue above it, such as 2 / lr, and the first below: `k` grows and comes back as they do.
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
        search: int | None = None,
        budget: int | None = None,
        seed: int = 0,
    ) -> None:
        check_count("k", k, 1)
        if budget is not None:
            check_count("budget", budget, k)
        self.k = k
        self.tol = tol
        self.target: Target = target
        self.threshold = threshold
        self.search = search
        self.budget = budget
        self.seed = seed
        self.pairs: EigenPairs | None = None
        self.identities: list[int] = []
        self.shortfall: str | None = None
        self.updates = 0
        self.products = 0
        self._identified = 0

    def update(self, operator: Multiplies) -> EigenPairs:
        """Find the largest eigenpairs of the operator as it is now.

        Raises:
            TypeError, ValueError: as `top_eigenpairs`.
        """
        operator = as_operator(operator, check=False)
        before = [] if self.pairs is None else self.pairs.vectors
        pairs = self._found(operator, before)
        identities, vectors = self._identified_with(before, pairs.vectors)
        self.shortfall = self._missing(pairs, operator)
        if self.shortfall and self.budget is None:
            warnings.warn(self.shortfall, stacklevel=2)
        self.pairs, self.identities = replace(pairs, vectors=vectors), identities
        self.products += pairs.products
        self.updates += 1
        return self.pairs

    # --- finding ------------------------------------------------------------------------------------------------------

    def _found(self, operator: Operator, before: Sequence[Vector]) -> EigenPairs:
        pairs = self._searched(operator, self._wished(operator), before, self.budget, self.search)
        while self._reaches_on(pairs, operator):
            spent = pairs.products
            more = self._searched(operator, len(pairs.values) + 1, pairs.vectors, self._left(spent), self.search)
            pairs = replace(more, products=spent + more.products)
        return pairs

    def _searched(
        self, operator: Operator, k: int, start: Sequence[Vector], budget: int | None, search: int | None
    ) -> EigenPairs:
        wanted = checked_wanted(operator, k, self.tol, "largest", self.target)
        # Other random vectors at each update: what one misses, the next may see.
        seed = self.seed + self.updates * (k + 1)
        return find(operator, wanted, self.tol, start, search, budget, None, seed)

    def _wished(self, operator: Operator) -> int:
        """One more than were above the threshold, as many as there is room for."""
        above = 0 if self.pairs is None or self.threshold is None else _above(self.pairs, self.threshold)
        room = operator.size if self.budget is None else self.budget
        return max(self.k, min(above + 1, room, operator.size))

    def _reaches_on(self, pairs: EigenPairs, operator: Operator) -> bool:
        """Whether all pairs are above the threshold, and there are more to look for."""
        k = len(pairs.values)
        above = self.threshold is not None and _above(pairs, self.threshold) == k
        return above and pairs.converged and k < operator.size and self._has_room(pairs.products, k + 1)

    def _has_room(self, spent: int, k: int) -> bool:
        return self.budget is None or self.budget - spent >= k

    def _left(self, spent: int) -> int | None:
        return None if self.budget is None else self.budget - spent

    def _missing(self, pairs: EigenPairs, operator: Operator) -> str | None:
        if not pairs.converged:
            return complaint(pairs, self.tol, operator.error)
        if self.threshold is not None and _above(pairs, self.threshold) == len(pairs.values) < operator.size:
            return (
                f"all {len(pairs.values)} eigenvalues that {self.budget} products could find are above {self.threshold:g}; "
                "there may be more"
            )
        return None

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
            "shortfall": self.shortfall,
            "pairs": None if self.pairs is None else _as_plain(self.pairs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the `state_dict` of a tracker with the same arguments."""
        pairs = state["pairs"]
        self.pairs = None if pairs is None else _from_plain(pairs)
        self.updates, self.products = state["updates"], state["products"]
        self.identities, self._identified = list(state["identities"]), state["identified"]
        self.shortfall = state["shortfall"]


def _above(pairs: EigenPairs, threshold: float) -> int:
    return sum(value > threshold for value in pairs.values)


def _as_plain(pairs: EigenPairs) -> dict[str, Any]:
    return vars(pairs) | {"record": None if pairs.record is None else vars(pairs.record).copy()}


def _from_plain(pairs: dict[str, Any]) -> EigenPairs:
    record = pairs.get("record")
    return replace(EigenPairs(**pairs), record=None if record is None else Record(**record))
