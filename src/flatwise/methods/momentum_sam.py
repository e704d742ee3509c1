"""SAM with the momentum in place of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise.methods.checks import non_negative
from flatwise.methods.dialogue import At, Dialogue, Passes, State

NOT_FOUND = (
    "MomentumSAM found no momentum after the first step: the base optimizer keeps it under another name than torch's own do "
    '("momentum_buffer", "exp_avg"), or not at all'
)


@dataclass(frozen=True)
class MomentumSAM(Dialogue):
    """Momentum-SAM (arXiv 2401.12033): the gradient at `w - rho * m / |m|`, with the base optimizer's momentum `m`.

    One evaluation a step, since the momentum is there before. It is the running sum (SGD) or mean (Adam) of gradients,
    so this looks ahead like Nesterov's momentum (which it is for `rho = lr * momentum * |m|`), but further. The first
    step, without momentum, is the base optimizer's. Weight decay is the base optimizer's, at the weights; in the
    official code it is at the displaced ones. The loss of a step is the one at the displaced weights, and buffers
    advance there. Around RMSprop with momentum, `m` is the running sum of preconditioned gradients, the direction of its steps.

    Args:
        rho: the norm of the displacement; >= 0. Much larger than SAM's: 3 in the paper, where SAM's is 0.2.

    Raises:
        TypeError, ValueError: rho is no finite number >= 0; the base optimizer keeps no momentum.
        RuntimeError: in the second step, the base optimizer's momentum is not found.
    """

    rho: float = 3.0

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)

    @property
    def needs(self) -> frozenset[str]:
        """The base optimizer's momentum."""
        return frozenset({"momentum"})

    @property
    def cost(self) -> float:
        """One evaluation."""
        return 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate against the momentum, and step along that gradient."""
        displaced = self._has_begun(state) and state.displaces(self.rho)
        there = yield At.along(state.momentum, -self.rho) if displaced else At.weights()
        return there.release()

    def _has_begun(self, state: State) -> bool:
        begun = any(m is not None for m in state.momentum)
        if state.step and not begun:
            raise RuntimeError(NOT_FOUND)
        return begun
