"""Sharpness-Aware Minimization, its un-normalised form, its reverse, and the base optimizer alone."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, positive_integer
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State, Twice


@dataclass(frozen=True)
class SGD(Dialogue):
    """The base optimizer alone: the gradient at the weights. One evaluation a step."""

    @property
    def cost(self) -> float:
        """One evaluation."""
        return 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights and step along the gradient."""
        here = yield At.weights()
        return here.release()


@dataclass(frozen=True)
class SAM(Dialogue):
    """Sharpness-Aware Minimization (arXiv 2010.01412): the gradient at `w + rho * g / |g|`. Two evaluations a step.

    With several ascent steps, each goes rho / ascents along the normalised gradient of the place it starts from, and a
    step takes one evaluation more than there are ascents, and keeps the displacement meanwhile. For m-SAM, the mean
    over parts of the batch with an ascent each, use `passes(parts=m, each=True)` or `perturb="local"` of
    `SharpnessAware`.

    Args:
        rho: the radius, the norm of the displacement (of several ascents: their lengths together); >= 0, and 0 is the
            base optimizer at one evaluation.
        ascents: how many ascent steps; >= 1.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    ascents: int = 1

    _sign: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        positive_integer("ascents", self.ascents)

    @property
    def cost(self) -> float:
        """An evaluation for each ascent step, and the one to step along."""
        return 1.0 + self.ascents if self.rho else 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then along the gradient, and step along the last gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        if self.ascents == 1:
            there = yield At.along(here.release(), self._sign * self.rho)
        else:
            there = yield from self._ascend(here, state)
        return there.release()

    def _ascend(self, here: Evaluation, state: State) -> Generator[At, Evaluation, Evaluation]:
        displacement = V.zeros_like(state.weights)
        for _ in range(self.ascents):
            gradient = state.on_perturbed(here.release())
            V.add_(displacement, gradient, self._sign * self.rho / self.ascents * V.reciprocal(V.norm(gradient)))
            here = yield At.offset(displacement)
        return here


@dataclass(frozen=True)
class ReverseSAM(SAM):
    """Reverse-SAM (arXiv 2501.12666): the gradient at `w - rho * g / |g|`, the control that seeks sharpness.

    Two evaluations a step. To first order in rho it climbs the gradient norm that SAM descends, to second order the two
    are the same: what they have in common cannot come from the first.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.
        ascents: how many steps against the gradient; >= 1.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    _sign: ClassVar[float] = -1.0


@dataclass(frozen=True)
class USAM(Twice):
    """Un-normalised SAM (arXiv 2206.06232): the gradient at `w + rho * g`. Two evaluations a step.

    Its displacement shrinks with the gradient, and its edge of stability does not depend on it (`theory.usam_edge`).

    Args:
        rho: the displacement per gradient; >= 0, and 0 is the base optimizer at one evaluation.

    Raises:
        TypeError, ValueError: rho is no finite number >= 0.
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then displaced by rho times the gradient, and step along the second gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        there = yield At.offset(here.release(), self.rho)
        return there.release()
