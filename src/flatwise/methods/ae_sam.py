"""SAM where the gradient is unusually large."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import finite, fraction, no_share, non_negative, positive_integer
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State
from flatwise.vectors import Vector

MEAN, VARIANCE = "mean_of_squares", "variance_of_squares"


@dataclass(frozen=True)
class AESAM(Dialogue):
    """Adaptive policy for SAM (arXiv 2304.14647): a SAM step where `|g|^2 >= m + c * s`, else one of the base optimizer.

    `m` and `s` are the running mean and standard deviation of `|g|^2`, which begin at the first `|g|^2` and at 0, so
    that the first step is SAM's. `c` goes from `start` to `end` in a straight line over `steps` steps, so that SAM
    becomes more frequent: with the defaults it is taken at first when `|g|^2` is a standard deviation above its mean, at
    last unless it is one below. Between one and two evaluations a step, and the host waits for the device once more.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer.
        steps: over how many steps `c` changes, usually all of the training; >= 1. The default is ours.
        start: `c` at step 0.
        end: `c` from `steps` on.
        decay: of the running mean and variance; in [0, 1).

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    steps: int = 1000
    start: float = 1.0
    end: float = -1.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        no_share("steps", self.steps)
        positive_integer("steps", self.steps)
        finite("start", self.start)
        finite("end", self.end)
        fraction("decay", self.decay)

    @property
    def adaptive(self) -> bool:
        """How many evaluations a step takes depends on its gradient."""
        return True

    @property
    def cost(self) -> float | None:
        """Not known before, but for rho 0."""
        return None if self.rho else 1.0

    def init(self, vectors: Vector) -> State:
        """No gradient has been seen."""
        del vectors
        return State(numbers={MEAN: 0.0, VARIANCE: 0.0})

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, and along the gradient only where it is large."""
        here = yield At.weights()
        if not (state.displaces(self.rho) and self._is_large(here, state)):
            return here.release()
        there = yield At.along(here.release(), self.rho)
        return there.release()

    def _is_large(self, here: Evaluation, state: State) -> bool:
        norm = float(V.norm(here.gradient))
        square = norm * norm  # a power would raise where it overflows
        first, share = not state.numbers[MEAN], min(state.step / self.steps, 1.0)
        mean = square if first else self.decay * state.numbers[MEAN] + (1 - self.decay) * square
        apart = square - mean
        variance = self.decay * state.numbers[VARIANCE] + (1 - self.decay) * apart * apart
        state.numbers |= {MEAN: mean, VARIANCE: variance}
        return square >= mean + (self.start + (self.end - self.start) * share) * variance**0.5
