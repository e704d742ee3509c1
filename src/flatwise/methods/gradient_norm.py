"""Explicit gradient-norm regularisation."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import non_negative
from flatwise.methods.dialogue import At, Passes, State, Twice
from flatwise.methods.products import difference_length, quotient


@dataclass(frozen=True)
class GradientNorm(Twice):
    """Explicit gradient regularisation, EGR (arXiv 2501.12666, appendix): the loss `f + rho * |grad f|`.

    Its gradient is `g + rho * H g / |g|`, the product taken as a difference of two gradients of the same batch in the
    same mode. Two evaluations a step, and the first gradient is kept through the second. It equals SAM to first order
    in rho, so where the two part, SAM's higher orders are at work. The coefficient is the natural one, not checked
    against the paper's.

    Args:
        rho: the weight of the gradient norm; >= 0, and 0 is the base optimizer at one evaluation.

    Raises:
        TypeError, ValueError: rho is no finite number >= 0.
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then a little along the gradient, and add rho times the difference quotient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        length = difference_length(state, here.gradient)
        there = yield At.along(here.gradient, length)
        direction = here.release()
        V.add_(direction, quotient(there.release(), direction, length), self.rho)
        return direction
