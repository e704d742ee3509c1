"""Methods that step along a combination of the gradient at the weights and SAM's."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import fraction, non_negative
from flatwise.methods.dialogue import At, Dialogue, Passes, State, Twice


@dataclass(frozen=True)
class GSAM(Twice):
    """Surrogate-Gap SAM (arXiv 2203.08065): SAM's gradient `h` less alpha times the part of `g` orthogonal to it.

    Descending `h` lowers the perturbed loss; ascending the rest of `g` lowers the gap between it and the loss. The
    paper ties rho to the learning rate: `flatwise.schedules.TiedToLearningRate`. Two evaluations a step; the first
    gradient is kept.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.
        alpha: the weight of the orthogonal part; >= 0, and 0 is SAM.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    alpha: float = 0.4

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("alpha", self.alpha)

    def passes(self, state: State) -> Passes:
        """Evaluate as SAM does, and take the orthogonal part of the first gradient off the second."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        there = yield At.along(here.gradient, self.rho)
        gradient, direction = here.release(), there.release()
        # h - alpha * (g - <g, h> / |h|^2 * h)
        share = V.dot(gradient, direction) * V.reciprocal(V.norm(direction) ** 2)
        V.scale_(direction, 1 + self.alpha * share)
        V.accumulate_(direction, gradient, -self.alpha)
        return direction


@dataclass(frozen=True)
class WSAM(Dialogue):
    """Weighted SAM (arXiv 2305.15817): `g + gamma / (1 - gamma) * (h - g)`, a weight on the sharpness.

    `h` is SAM's gradient: gamma 1/2 is SAM, 0 the base optimizer. This is the coupled form, in which the sharpness goes
    through the base optimizer's momentum and scaling like the loss. The paper's experiments have the decoupled one, in
    which it does not; with SGD without momentum they are the same. Two evaluations a step; the first gradient is kept.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.
        gamma: the weight of the sharpness; in [0, 1).

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    gamma: float = 0.9

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        fraction("gamma", self.gamma)

    @property
    def cost(self) -> float:
        """Two evaluations, or one without rho or without weight."""
        return 2.0 if self.rho and self.gamma else 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate as SAM does, and step along the weighted mean of the two gradients."""
        here = yield At.weights()
        if not (self.gamma and state.displaces(self.rho)):
            return here.release()
        there = yield At.along(here.gradient, self.rho)
        gradient, direction = here.release(), there.release()
        weight = self.gamma / (1 - self.gamma)
        V.scale_(direction, weight)
        V.accumulate_(direction, gradient, 1 - weight)
        return direction
