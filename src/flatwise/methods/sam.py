"""Sharpness-Aware Minimization, its reverse, and the base optimizer alone."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise.methods.checks import non_negative
from flatwise.methods.dialogue import At, Dialogue, Passes, State


@dataclass(frozen=True)
class SGD(Dialogue):
    """The base optimizer alone: the gradient at the weights. One evaluation a step."""

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights and step along the gradient."""
        here = yield At.weights()
        return here.release()


@dataclass(frozen=True)
class SAM(Dialogue):
    """Sharpness-Aware Minimization (arXiv 2010.01412): the gradient at `w + rho * g / |g|`. Two evaluations a step.

    Args:
        rho: the radius, the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.

    Raises:
        TypeError, ValueError: rho is no finite number >= 0.
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then along the gradient, and step along the second gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        there = yield At.along(here.release(), self.rho)
        return there.release()


@dataclass(frozen=True)
class ReverseSAM(SAM):
    """Reverse-SAM (arXiv 2501.12666): the gradient at `w - rho * g / |g|`, the control that seeks sharpness.

    Two evaluations a step. Second-order theories of SAM predict that it does as well as SAM; it does not.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.

    Raises:
        TypeError, ValueError: rho is no finite number >= 0.
    """

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then against the gradient, and step along the second gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        there = yield At.along(here.release(), -self.rho)
        return there.release()
