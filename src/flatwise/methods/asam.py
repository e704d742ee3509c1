"""SAM with a radius relative to each weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, one_of
from flatwise.methods.dialogue import At, Passes, State, Twice
from flatwise.vectors import Vector

Scaled = Literal["weights", "all"]

NO_WEIGHTS = (
    "ASAM(scaled='weights') scales tensors with \"weight\" in their name, and this model has none, so that it would be SAM "
    "with a radius for ASAM: pass scaled='all'"
)


@dataclass(frozen=True)
class ASAM(Twice):
    """Adaptive SAM (arXiv 2102.11600): the gradient at `w + rho * T^2 g / |T g|`, `T = diag(|w| + eta)`. Two evaluations a step.

    Rescaling weights such that the network computes the same does not change what the displaced network computes
    (exactly so where eta is 0 and T applies to all that is rescaled). The same rho is another length than in SAM: ten
    to forty times SAM's are usual. There are two variants in use. The authors' code applies T only to tensors with
    "weight" in their name (also those of BatchNorm), and leaves biases as in SAM (`scaled="weights"`, rho 0.5 and 1 in
    the paper); the popular re-implementation of davda54 applies it to all of them, with eta 0 (`scaled="all", eta=0`,
    rho 2).

    Args:
        rho: the radius in the metric of T; >= 0, and 0 is the base optimizer at one evaluation.
        eta: what is added to the size of each weight; >= 0.
        scaled: "weights": tensors with "weight" in their full name in the model; "all": every tensor.

    Raises:
        TypeError, ValueError: an argument is out of its range; in the first step, no name has "weight" in it.
    """

    rho: float = 0.5
    eta: float = 0.01
    scaled: Scaled = "weights"

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("eta", self.eta)
        one_of("scaled", self.scaled, get_args(Scaled))

    @property
    def needs(self) -> frozenset[str]:
        """The names of parameters, where they decide."""
        return frozenset({"names"} if self.scaled == "weights" else ())

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, then along the rescaled gradient, and step along the second gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        rescaled = self._rescaled(state.on_perturbed(here.release()), state)
        length = self.rho * V.reciprocal(V.norm(rescaled))
        there = yield At.offset(self._rescaled(rescaled, state), length)
        return there.release()

    def _rescaled(self, vector: Vector, state: State) -> Vector:
        """`T` times the vector."""
        return [v if keep is None else keep for v, keep in zip(vector, self._times_size(vector, state), strict=True)]

    def _times_size(self, vector: Vector, state: State) -> Vector:
        """`(|w| + eta) * v` for the tensors that are rescaled, None for the others."""
        if self.scaled == "weights":
            vector = V.restrict(vector, self._are_weights(state))
        return V.elementwise(self._product, vector, state.weights)

    def _are_weights(self, state: State) -> list[bool]:
        found = ["weight" in name for name in state.names]
        if not any(found):
            raise ValueError(NO_WEIGHTS)
        return found

    def _product(self, v: Tensor, w: Tensor) -> Tensor:
        wide = torch.promote_types(
            w.dtype, torch.float32
        )  # a gradient times a weight is often less than float16 can hold
        return w.detach().abs().to(wide).add_(self.eta).mul_(v)
