"""SAM along what is the batch's own in its gradient."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import fraction, non_negative
from flatwise.methods.dialogue import At, Passes, State, Twice
from flatwise.vectors import Vector

MEAN, BEGUN = "mean_gradient", "begun"


@dataclass(frozen=True)
class FriendlySAM(Twice):
    """Friendly SAM (arXiv 2403.12350): the gradient at `w + rho * d / |d|`, `d = g - sigma * m`.

    The running mean `m` of gradients stands for the gradient of the full loss; what is left is the batch's noise, along
    which SAM is said to work. As in the official code, `m` is that of the steps before, and the first step is SAM's.
    Two evaluations a step; one more vector is remembered.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.
        sigma: how much of the mean is taken out; >= 0, and 0 is SAM.
        decay: of the mean, `m = decay * m + (1 - decay) * g`; in [0, 1). The paper's lambda, 0.6 or 0.95.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.2
    sigma: float = 1.0
    decay: float = 0.6

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("sigma", self.sigma)
        fraction("decay", self.decay)

    def init(self, vectors: Vector) -> State:
        """No gradient has been seen."""
        return State(vectors={MEAN: V.zeros_like(vectors)}, numbers={BEGUN: 0.0})

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then along the gradient less the mean, and step along the second gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        there = yield At.along(self._own(here.release(), state), self.rho)
        return there.release()

    def _own(self, gradient: Vector, state: State) -> Vector:
        """The gradient less what the steps before had in common, which then takes it in."""
        mean, begun = state.vectors[MEAN], state.numbers[BEGUN]
        state.vectors[MEAN] = V.add(V.scale(mean, self.decay), gradient, 1 - self.decay if begun else 1.0)
        state.numbers[BEGUN] = 1.0
        V.add_(gradient, mean, -self.sigma)
        return gradient
