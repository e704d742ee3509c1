"""Noise that cancels to first order."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import fraction, non_negative, positive_integer, whole
from flatwise.methods.dialogue import At, Dialogue, Passes, State
from flatwise.methods.noise import gaussian
from flatwise.vectors import Vector


@dataclass(frozen=True)
class NSO(Dialogue):
    """Noise Stability Optimization (arXiv 2306.08553): the mean of the gradients at `w + u` and `w - u`, `u ~ N(0, rho^2)`.

    It descends the loss under noise, the loss plus half of `rho^2` times the trace of the Hessian. Of the two points
    the gradient's first-order noise cancels: on a quadratic the result is the gradient exactly. `2 * samples`
    evaluations a step, and one more with `clean`.

    Args:
        rho: the standard deviation of the noise on each weight, sigma in the paper; >= 0, and 0 is the base optimizer.
        samples: pairs of points; >= 1.
        clean: the weight of the gradient at the weights in the result; in [0, 1).
        seed: of the noise; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.01
    samples: int = 1
    clean: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        positive_integer("samples", self.samples)
        fraction("clean", self.clean)
        whole("seed", self.seed)

    @property
    def cost(self) -> float:
        """Two evaluations for each sample, and one at the weights where it counts."""
        return 2.0 * self.samples + (self.clean > 0) if self.rho else 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate on both sides of the weights, and step along the mean."""
        if not state.displaces(self.rho):
            here = yield At.weights()
            return here.release()
        total: Vector = [None] * len(state.weights)
        if self.clean:
            here = yield At.weights()
            V.accumulate_(total, here.release(), self.clean)
        for noise in gaussian(state, self.seed, self.samples):
            for sign in (1.0, -1.0):
                there = yield At.offset(noise, sign * self.rho)
                V.accumulate_(total, there.release(), (1 - self.clean) / (2 * self.samples))
        return total
