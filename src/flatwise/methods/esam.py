"""SAM on part of the weights and part of the samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, share, whole
from flatwise.methods.dialogue import At, Passes, State, Twice
from flatwise.methods.selection import Selection
from flatwise.vectors import Vector


@dataclass(frozen=True)
class ESAM(Twice):
    """Efficient SAM (arXiv 2110.03141): only some tensors are displaced, and only some samples count there.

    As in the official code whole tensors are drawn. They are displaced by `rho / beta * g / |g|`, such that the mean is
    SAM's; as in the paper `|g|` is of the whole gradient (in the official code it is of the tensors drawn, so that every
    displacement is `rho / beta` long). The samples are those whose loss rises most by the displacement. For them the
    loop has to show each sample's loss:

        for p in optimizer.passes():
            losses = F.cross_entropy(model(x), y, reduction="none")
            p.backward(p.chosen(losses).mean())

    With gamma 1 any loop or closure does. Two evaluations a step. The paper's saving is in time, by leaving samples and
    tensors out of the second backward; here only the gradients of the samples that do not count are zero, which saves
    little.

    Args:
        rho: the norm of the displacement in the mean; >= 0, and 0 is the base optimizer at one evaluation.
        beta: share of the tensors; in (0, 1], and 1 is all of them.
        gamma: share of the samples; in (0, 1], and 1 is all of them. The paper's is 0.5; the default is ours, for loops that
            show no losses.
        seed: of the draw of tensors; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
        RuntimeError, ValueError: in a step with gamma below 1 whose passes do not show the losses, or not those of the same
            samples every time.
    """

    rho: float = 0.05
    beta: float = 0.6
    gamma: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        share("beta", self.beta)
        share("gamma", self.gamma)
        whole("seed", self.seed)

    @property
    def needs(self) -> frozenset[str]:
        """The losses of all samples, where it chooses among them."""
        return frozenset({"samples"} if self.gamma < 1 else ())

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then with some of them displaced, on some of the samples."""
        if not state.displaces(self.rho):
            here = yield At.weights()
            return here.release()
        selection = Selection(self.gamma) if self.gamma < 1 else None
        here = yield At.weights(selection=selection)
        if selection is not None:
            selection.choose()
        gradient = state.on_perturbed(here.release())
        length = self.rho / self.beta * V.reciprocal(V.norm(gradient))
        there = yield At.offset(self._drawn(gradient, state), length, selection=selection)
        if selection is not None:
            selection.conclude()
        return there.release()

    def _drawn(self, gradient: Vector, state: State) -> Vector:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + state.step) % 2**63)
        return V.restrict(gradient, (torch.rand(len(gradient), generator=generator) < self.beta).tolist())
