"""Gradients around the weights, weighted towards the largest losses."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, positive_integer, whole
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State
from flatwise.methods.noise import gaussian
from flatwise.vectors import Vector


@dataclass(frozen=True)
class TSAM(Dialogue):
    """Tilted SAM (arXiv 2410.22656): the loss `log(E exp(tilt * f(w + e))) / tilt` over perturbations `e`.

    Each perturbation is a random point at distance `radius * rho`, from which a normalised gradient step of length rho
    goes uphill, as in the official code (there the two lengths are 1 and 0.05, so radius 20). The direction is the mean
    of the gradients at these points, weighted by `exp(tilt * loss)`: tilt 0 is the average loss around the weights, a
    large one the largest of the samples. `2 * samples` evaluations a step, none at the weights themselves.

    Args:
        rho: the length of the ascent step; >= 0, and 0 is the base optimizer.
        radius: the norm of the random part, in multiples of rho; >= 0.
        tilt: >= 0.
        samples: perturbations; >= 1.
        seed: of the random points; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    radius: float = 20.0
    tilt: float = 1.0
    samples: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("radius", self.radius)
        non_negative("tilt", self.tilt)
        positive_integer("samples", self.samples)
        whole("seed", self.seed)

    @property
    def cost(self) -> float:
        """Two evaluations for each sample."""
        return 2.0 * self.samples if self.rho else 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate at the perturbations, and step along the tilted mean of their gradients."""
        if not state.displaces(self.rho):
            here = yield At.weights()
            return here.release()
        total: Vector = [None] * len(state.weights)
        highest = weight = torch.zeros(())
        for sample, noise in enumerate(gaussian(state, self.seed, self.samples)):
            there = yield from self._uphill(noise, state)
            # Sums of exponentials relative to the highest loss so far, which cannot overflow.
            known, highest = highest, there.loss if sample == 0 else torch.maximum(highest, there.loss)
            faded, share = (torch.exp(self.tilt * (loss - highest)) for loss in (known, there.loss))
            V.scale_(total, faded)
            V.accumulate_(total, there.release(), share)
            weight = share if sample == 0 else weight * faded + share
        V.scale_(total, 1 / weight)
        return total

    def _uphill(self, noise: Vector, state: State) -> Generator[At, Evaluation, Evaluation]:
        """A point at the given distance, and from there a step along the gradient."""
        V.scale_(noise, self.radius * self.rho * V.reciprocal(V.norm(noise)))
        there = yield At.offset(noise)
        gradient = state.on_perturbed(there.release())
        V.add_(noise, gradient, self.rho * V.reciprocal(V.norm(gradient)))
        there = yield At.offset(noise)
        return there
