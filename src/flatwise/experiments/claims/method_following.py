"""Full-batch training on digits with any method, and what its edge of stability hangs on, along the way.

After the protocol of arXiv 2309.12488, as in `flatwise.experiments.full_batch`: squared error, Glorot normal weights, a constant
learning rate, no decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flatwise import methods
from flatwise import vectors as V
from flatwise.curvature import EigenPairs, hessian
from flatwise.experiments.claims.claim import Values
from flatwise.experiments.claims.following import Batch, Following
from flatwise.methods.eigenvectors import EIGENVECTOR
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.tasks import build_model, load_data
from flatwise.training.setup import squared_error
from flatwise.vectors import Vector


def follow_method(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """Train with the arm of a cell on the full batch, and measure every so many steps; continues where it was interrupted.

    The preset has `widths` of the network, `steps`, `measured` (the distance of measurements, odd: at an edge the
    weights swing with period two, and even ones would see one side of it), `eigenvalues` (how many) and `arms`: by
    label `method`, its hyper-parameters as `hyper`, `lr` and `momentum`. A cell names its `arm`.

    Returns:
        For each measurement, in lists: `step`; `loss`; `gradient_norm` at the weights; `eigenvalues`, the largest ones
        of the Hessian; `cosines` of the gradient with their eigenvectors; `displacement_norm` of the step; `reversal`,
        the component of the step along the tracked vector, else the top eigenvector, by that of the step before: -1
        where steps turn back. Of methods that track a vector v also `tracked_cosine`, the |cos| of the gradient with
        it, and `tracked_value`, v'Hv.
    """
    with torch.random.fork_rng(devices=[]):
        return _WithMethod(preset, preset["arms"][cell["arm"]], seed, folder).run(progress)


def cells(preset: Values) -> list[Values]:
    """A part for each arm."""
    return [{"arm": label} for label in preset["arms"]]


def late(preset: Values, run: Values, number: Callable[[int], float]) -> float:
    """The median of a number, by measurement, over the second half of a training; NaN where it did not get to its end."""
    steps = run.get("step", [])
    if not steps or steps[-1] + preset["measured"] < preset["steps"]:
        return math.nan
    return median(number(at) for at, step in enumerate(steps) if step >= preset["steps"] / 2)


class _WithMethod(Following):
    """Any method, on the full batch of digits."""

    first = 1  # a step is compared with the one before

    def __init__(self, preset: Values, arm: Values, seed: int, folder: Path) -> None:
        task = load_data("digits-full", seed=seed)
        model = build_model("mlp", task, seed, widths=tuple(preset["widths"]), init="glorot")
        base = torch.optim.SGD(model.parameters(), lr=arm["lr"], momentum=arm.get("momentum", 0.0))
        optimizer = SharpnessAware(base, methods.by_name(arm["method"], **arm.get("hyper", {})), model=model)
        super().__init__(preset, arm, seed, folder, task, model, optimizer, squared_error)
        self.weights: Vector = [p.detach() for p in model.parameters()]
        self.before = V.clone(self.weights)

    def step(self, batch: Batch) -> None:
        self.before = V.clone(self.weights)
        super().step(batch)

    def state(self) -> dict[str, Any]:
        return super().state() | {"before": self.before}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.before = state["before"]

    def measure_and_step(
        self, objective: Objective, loss: float, gradient: Vector, pairs: EigenPairs, batch: Batch
    ) -> Values:
        last = self._change()
        self.step(batch)
        tracked = self._tracked(objective, gradient)
        along = tracked.pop("vector", pairs.vectors[0])
        return {
            "loss": loss,
            "gradient_norm": float(V.norm(gradient)),
            "eigenvalues": list(pairs.values),
            "cosines": [float(V.cosine(gradient, vector)) for vector in pairs.vectors],
            "displacement_norm": self.optimizer.diagnostics["displacement_norm"],
            "reversal": float(V.dot(self._change(), along)) / (float(V.dot(last, along)) or math.nan),
        } | tracked

    def _change(self) -> Vector:
        """What the last step added to the weights."""
        return V.add(self.weights, self.before, -1.0)

    def _tracked(self, objective: Objective, gradient: Vector) -> Values:
        """What the method's own eigenvector, that of the step just taken, was at the weights before; nothing without one."""
        entries = self.optimizer.state_dict()["state"].values()
        vector: Vector = [entry.get(f"flatwise.{EIGENVECTOR}") for entry in entries]
        if not V.present(vector):
            return {}
        with objective.displaced() as place:
            place.at(self.before)
            value = float(V.dot(vector, hessian(objective)(vector)))
        return {"vector": vector, "tracked_value": value, "tracked_cosine": abs(float(V.cosine(gradient, vector)))}
