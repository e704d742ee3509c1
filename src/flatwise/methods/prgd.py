"""Normalised descent at a norm of the weights that grows in leaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flatwise import vectors as V
from flatwise.methods.checks import at_least, positive_integer, whole
from flatwise.methods.dialogue import At, Dialogue, Passes, State
from flatwise.vectors import Vector


@dataclass(frozen=True)
class PRGD(Dialogue):
    """Progressive Rescaling Gradient Descent (arXiv 2311.14387): normalised steps, and leaps of the norm.

    The steps go along `g / f`, back to the ball of the weights' norm; the leaps multiply the weights. On separable data
    with an exponential loss the direction of largest margin attracts more strongly at larger norms, and the margin is
    maximised exponentially fast. The norm is that of all weights together. At every k-th step the weights are
    multiplied by `growth` instead of updated. One evaluation a step. The paper leaves the times and radii open beyond
    their order, `k` steps and `exp(k)`: these defaults are ours.

    The loss must be positive: a step at which it is negative is skipped. Leaps end where it underflows, of an
    exponential loss in float32 at margins times norms of about 100, in float64 of about 740; from there on nothing
    moves but by leaps. Weights that are all zero stay zero: begin with some steps without this method, as with `Late`.

    Args:
        every: steps from one leap to the next; >= 1.
        growth: the factor on the norm in a leap; >= 1.
        start: the step before which there are no leaps; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    every: int = 100
    growth: float = 1.2
    start: int = 0

    def __post_init__(self) -> None:
        positive_integer("every", self.every)
        at_least("growth", self.growth, 1.0)
        whole("start", self.start)

    @property
    def cost(self) -> float:
        """One evaluation."""
        return 1.0

    @property
    def needs(self) -> frozenset[str]:
        """The loss, not only its gradient."""
        return frozenset({"loss"})

    @property
    def changes_update(self) -> bool:
        """The norm of the weights is kept, or multiplied."""
        return True

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, and step along the gradient of the logarithm of the loss."""
        here = yield At.weights()
        direction = here.release()
        along = torch.where(here.loss < 0, torch.nan, V.reciprocal(here.loss))  # else it would go uphill
        V.scale_(direction, along)
        return direction

    def update(self, state: State, weights: Vector, update: Vector) -> Vector:
        """The update back to the ball of the weights' own norm; or the leap."""
        if state.step >= self.start and (state.step + 1) % self.every == 0:
            return V.scale(weights, self.growth - 1)
        reached = V.add(weights, update)
        shrunk = torch.clamp(V.norm(weights) * V.reciprocal(V.norm(reached)), max=1.0)
        return V.add(V.scale(reached, shrunk), weights, -1.0)
