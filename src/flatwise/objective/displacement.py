"""Moving the weights and putting them back: always by a copy from one backup into the same storage, so that nothing drifts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.modules import surely, unseen
from flatwise.vectors import Vector


class Displacement:
    """Takes weights to places around those where they were when this was made. At the end of its context they are back, bitwise.

    So a graph that was built before it may still be gone through after it.

    Args:
        weights: the tensors that are moved, in place.
        moved: called after each move, for what holds copies of the weights.
        home: a copy of the weights as they are now, if there is one already.
    """

    def __init__(self, weights: Vector, moved: Callable[[], None] = lambda: None, home: Vector | None = None) -> None:
        self.home = V.clone(weights) if home is None else home
        self._weights = weights
        self._moved = moved
        self._unseen = unseen(V.present(weights))

    def to(self, vector: Sequence[Tensor | None], length: float) -> None:
        """Go to home plus `length` times `vector`; where the vector is None, the weights are at home."""
        V.copy_(self._weights, self.home)
        V.add_(self._weights, vector, length)
        self._tell()

    def at(self, weights: Sequence[Tensor | None]) -> None:
        """Go to these weights, bitwise; where there is None, they stay as they are."""
        V.copy_(self._weights, weights)
        self._tell()

    def back(self) -> None:
        """Go home."""
        self.at(self.home)

    def __enter__(self) -> Displacement:
        self._unseen.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            surely(self.back)
        finally:
            self._unseen.__exit__(None, None, None)

    def _tell(self) -> None:
        torch.clear_autocast_cache()  # an autocast region around both places would go on with the weights of the first
        self._moved()
