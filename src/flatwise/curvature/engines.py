"""Four ways to multiply the Hessian of an objective with a vector.

| engine | how | gradients a product | needs |
|---|---|---|---|
| double | the gradient, differentiated (reverse over reverse) | about 3 | second derivatives of every operation |
| forward | the gradient along a tangent (forward over reverse) | about 3 | forward derivatives of every backward |
| differences | gradients ahead and behind | 2 | whatever can be trained |
| one-sided | a gradient ahead, and the one at the weights | 1, and 1 for all | the same, less exact |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from flatwise import vectors as V
from flatwise.curvature.home import Home
from flatwise.objective import Objective
from flatwise.objective.arguments import fitting
from flatwise.objective.averages import Part, all_agree
from flatwise.objective.derivatives import load_forward_mode, twice_differentiable
from flatwise.objective.differences import central
from flatwise.vectors import Vector


class Forward:
    """The tangent of the gradient, in the direction of the vector."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._bound = Bound(objective)
        load_forward_mode()

    def __call__(self, vector: Vector) -> Vector:
        """The Hessian times the vector."""
        parameters = self._objective.parameters()
        along = [v.to(p.dtype) for v, p in zip(fitting(vector, parameters), parameters, strict=True)]
        with twice_differentiable(self._objective.model):
            product = self._objective.mean(lambda part: self._tangents(part, along), parameters)
        return list(product)

    def _tangents(self, part: Part, along: list[Tensor]) -> list[Tensor]:
        own = frozenset(self._objective.parameters())
        named = {name: p for name, p in self._bound.named_parameters() if p in own}
        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(p, v) for (n, p), v in zip(named.items(), along, strict=True)}
            loss: Tensor = functional_call(self._bound, duals, (part.batch,))
            found: Any = torch.autograd.grad(loss, list(duals.values()), allow_unused=True)
            tangents = [None if g is None else forward_ad.unpack_dual(g).tangent for g in found]
            return [torch.zeros_like(v) if t is None else t for t, v in zip(tangents, along, strict=True)]


class Bound(nn.Module):
    """Model and loss as one module, whose parameters can be exchanged for a call."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._objective = objective

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        return self._objective.loss(batch)


class Differences:
    """Gradients ahead and behind: an error of second order in the length.

    Args:
        objective: what to differentiate.
        length: how far from the weights, relative to `reach`.
    """

    def __init__(self, objective: Objective, length: float) -> None:
        self._objective = objective
        self.length = length

    def __call__(self, vector: Vector) -> Vector:
        """The Hessian times the vector."""
        if not (norm := float(V.norm(vector))):
            return V.zeros_like(self._objective.weights)
        return central(self._objective, fitting(vector, self._objective.parameters()), self.length / norm)


class OneSided:
    """A gradient ahead, and the one at the weights, which is computed once as long as they stay: an error of first order.

    Holds a copy of the weights and of their gradient.
    """

    def __init__(self, objective: Objective, length: float) -> None:
        self._objective = objective
        self.length = length
        self._home: Home | None = None
        self._weights: Vector = []
        self._gradient: Vector = []

    def __call__(self, vector: Vector) -> Vector:
        """The Hessian times the vector."""
        objective = self._objective
        if not (norm := float(V.norm(vector))):
            return V.zeros_like(objective.weights)
        self._settle()
        along = fitting(vector, objective.parameters())
        with objective.displaced(self._weights) as place:
            place.to(along, self.length / norm)
            _, *product = objective.wide_value_and_gradient()
        V.add_(product, self._gradient, -1.0)
        V.scale_(product, norm / self.length)
        return list(product)

    def _settle(self) -> None:
        """Take the gradient at the weights, unless it is there already and nothing has changed."""
        objective = self._objective
        stays = self._home is not None and self._home.is_that_of(objective)
        if not all_agree(objective.groups, stays, objective.device):
            self._weights = V.clone(objective.weights)
            _, *gradient = objective.wide_value_and_gradient()
            self._gradient = list(gradient)
            self._home = Home(objective)
