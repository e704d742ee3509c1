"""The top eigenpairs along a training run: each search starts from the vectors of the one before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flatwise import vectors as V
from flatwise.curvature.lanczos import EigenPairs, top_eigenpairs
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Record
from flatwise.vectors import Vector


class EigenTracker:
    """Follows the `k` largest eigenpairs of an operator that changes slowly, such as the Hessian while training.

    The signs of the vectors are those that agree with the vectors before. The arguments are those of `top_eigenpairs`.

    Attributes:
        pairs: what the last update found, None before the first.
        updates: how many updates there were.
    """

    def __init__(self, k: int = 1, tol: float = 1e-2, *, max_products: int | None = None, seed: int = 0) -> None:
        self.k = k
        self.tol = tol
        self.max_products = max_products
        self.seed = seed
        self.pairs: EigenPairs | None = None
        self.updates = 0

    def update(self, operator: Operator) -> EigenPairs:
        """Find the largest eigenpairs of the operator as it is now."""
        before = [] if self.pairs is None else self.pairs.vectors
        # Other random vectors at each update: what one misses, the next may see.
        seed = self.seed + self.updates * (self.k + 1)
        pairs = top_eigenpairs(operator, self.k, self.tol, before, max_products=self.max_products, seed=seed)
        self.pairs = replace(pairs, vectors=[_aligned(v, before) for v in pairs.vectors])
        self.updates += 1
        return self.pairs

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly like the uninterrupted one; plain lists, numbers and tensors."""
        return {"updates": self.updates, "pairs": None if self.pairs is None else _as_plain(self.pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the `state_dict` of a tracker with the same arguments."""
        pairs = state["pairs"]
        self.pairs = None if pairs is None else _from_plain(pairs)
        self.updates = state["updates"]


def _as_plain(pairs: EigenPairs) -> dict[str, Any]:
    return vars(pairs) | {"record": None if pairs.record is None else vars(pairs.record).copy()}


def _from_plain(pairs: dict[str, Any]) -> EigenPairs:
    record = pairs.get("record")
    return replace(EigenPairs(**pairs), record=None if record is None else Record(**record))


def _aligned(vector: Vector, before: list[Vector]) -> Vector:
    """The vector or its negative, whichever agrees with the one of those before that it is nearest to."""
    cosines = [V.dot(vector, v).item() for v in before]
    nearest = max(cosines, key=abs, default=1.0)
    return V.scale(vector, -1.0) if nearest < 0 else vector
