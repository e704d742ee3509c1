"""The gradient, differentiated: reverse over reverse. Between products at the same weights its graph is kept, if it may be.

A product from a kept graph costs about 2 gradients in place of 3, and the graph as much memory as it takes to make the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import functional_call

from flatwise.curvature.engines import Bound
from flatwise.curvature.home import Home
from flatwise.objective import Objective
from flatwise.objective.arguments import fitting
from flatwise.objective.averages import Mean
from flatwise.objective.derivatives import differentiated, gradient, twice_differentiable
from flatwise.vectors import Vector


class Graph(NamedTuple):
    """The gradient of a part of the data, differentiable once more, and what the part counts in the mean."""

    gradient: list[Tensor]
    weight: float


class Twice:
    """Products by differentiating the gradient.

    Args:
        objective: what to differentiate.
        keep: whether to keep the graph between products. None: where this process has a single batch, uncut, whose graph takes no
            more than a product does anyhow. True: the graphs of all batches.

    Attributes:
        keeps: whether it does.
    """

    def __init__(self, objective: Objective, keep: bool | None = None) -> None:
        self._objective = objective
        self._bound = Bound(objective)
        self._insists = bool(keep)
        self._graphs: list[Graph] = []
        self._home: Home | None = None
        self.keeps = _has_one_batch(objective) if keep is None else keep

    def __call__(self, vector: Vector) -> Vector:
        """The Hessian times the vector."""
        if self.keeps:
            try:
                return self._from_graphs(vector)
            except RuntimeError:  # not enough memory, or a layer whose graph serves only once
                self._forget()
                if self._insists:
                    raise
                self.keeps = False
        return self._objective.differentiated_twice(vector)

    def _from_graphs(self, vector: Vector) -> Vector:
        parameters = self._objective.parameters()
        along = fitting(vector, parameters)
        mean = Mean(parameters)
        stays = self._home is not None and self._home.is_that_of(self._objective)
        with twice_differentiable(self._objective.model), self._objective.evaluation():
            if not stays:
                self._settle(parameters)
            for graph in self._graphs:
                mean.add(differentiated(graph.gradient, parameters, along, keep=True), graph.weight)
        return [v.to(p.dtype) for v, p in zip(mean.over(self._objective.groups), parameters, strict=True)]

    def _settle(self, parameters: Sequence[Tensor]) -> None:
        """Make the graphs of the loss as it is; the old ones go first."""
        self._forget()
        # With buffers of their own, as the model's are written back after each evaluation; each part sees what the last one left.
        buffers = dict(self._bound.named_buffers())
        for part in self._objective.own_parts():
            buffers = {name: b.detach().clone() for name, b in buffers.items()}
            loss: Any = functional_call(self._bound, buffers, (part.batch,))
            self._graphs.append(Graph(gradient([loss], parameters, again=True), part.weight))
        self._home = Home(self._objective)

    def _forget(self) -> None:
        self._home, self._graphs = None, []


def _has_one_batch(objective: Objective) -> bool:
    objective.plan()
    with objective.evaluation():
        return len(list(islice(objective.own_parts(), 2))) < 2
