"""SAM at every k-th step, and what it found in the steps between."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, positive_integer
from flatwise.methods.dialogue import At, Dialogue, Passes, State
from flatwise.methods.products import where_present
from flatwise.vectors import Vector

ORTHOGONAL = "orthogonal_gradient"


@dataclass(frozen=True)
class LookSAM(Dialogue):
    """LookSAM (arXiv 2203.02714): SAM at steps 0, every, 2 * every ...; in between `g + alpha * |g| / |o| * o`.

    `o` is the part of the last SAM gradient that was orthogonal to the gradient of its step, which changes slowly.
    `1 + 1 / every` evaluations a step: the steps between take one, as the paper promises. One more vector is
    remembered.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.
        every: steps from one SAM step to the next; >= 1, and 1 is SAM.
        alpha: the weight of the orthogonal part; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    every: int = 5
    alpha: float = 0.7

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        positive_integer("every", self.every)
        non_negative("alpha", self.alpha)

    @property
    def cost(self) -> float:
        """One evaluation, and a second one at every k-th step."""
        return 1 + 1 / self.every if self.rho else 1.0

    def init(self, vectors: Vector) -> State:
        """No SAM step was taken."""
        return State(vectors={ORTHOGONAL: V.zeros_like(vectors)})

    def passes(self, state: State) -> Passes:
        """SAM when it is its turn; else the gradient, turned by what SAM found last."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        if state.step % self.every:
            gradient = here.release()
            return self._turned(gradient, where_present(state.vectors[ORTHOGONAL], gradient))
        there = yield At.along(here.gradient, self.rho)
        gradient, direction = here.release(), there.release()
        share = V.dot(gradient, direction) * V.reciprocal(V.norm(gradient) ** 2)
        state.vectors[ORTHOGONAL] = V.add(V.add(V.zeros_like(state.vectors[ORTHOGONAL]), direction), gradient, -share)
        return direction

    def _turned(self, gradient: Vector, orthogonal: Vector) -> Vector:
        V.add_(gradient, orthogonal, self.alpha * V.norm(gradient) * V.reciprocal(V.norm(orthogonal)))
        return gradient
