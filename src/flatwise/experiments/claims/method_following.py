"""Full-batch training on digits with any method, and what its edge of stability hangs on, along the way.

After the protocol of arXiv 2309.12488, as in `flatwise.experiments.full_batch`: squared error, Glorot normal weights, a constant
learning rate, no decay.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from flatwise import methods
from flatwise import vectors as V
from flatwise.curvature import EigenPairs, EigenTracker, hessian
from flatwise.experiments.claims.claim import Values
from flatwise.methods.eigenvectors import EIGENVECTOR
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.tasks import build_model, load_data
from flatwise.training.probes import objective_of
from flatwise.training.setup import squared_error
from flatwise.vectors import Vector


def follow_method(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """Train with the arm of a cell on the full batch, and measure every so many steps.

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
    del folder
    with torch.random.fork_rng(devices=[]):
        return _Following(preset, preset["arms"][cell["arm"]], seed).run(progress)


def cells(preset: Values) -> list[Values]:
    """A part for each arm."""
    return [{"arm": label} for label in preset["arms"]]


def late(preset: Values, run: Values, number: Callable[[int], float]) -> float:
    """The median of a number, by measurement, over the second half of a training; NaN where it did not get to its end."""
    steps = run.get("step", [])
    if not steps or steps[-1] + preset["measured"] < preset["steps"]:
        return math.nan
    return median(number(at) for at, step in enumerate(steps) if step >= preset["steps"] / 2)


def drawable(runs: Sequence[Values]) -> list[Values]:
    """Those in which something was measured before they ended."""
    return [run for run in runs if run.get("step")]


@dataclass
class _Following:
    preset: Values
    arm: Values
    seed: int
    records: list[Values] = field(default_factory=list[Values])

    def __post_init__(self) -> None:
        task = load_data("digits-full", seed=self.seed)
        model = build_model("mlp", task, self.seed, widths=tuple(self.preset["widths"]), init="glorot")
        base = torch.optim.SGD(model.parameters(), lr=self.arm["lr"], momentum=self.arm.get("momentum", 0.0))
        method = methods.by_name(self.arm["method"], **self.arm.get("hyper", {}))
        self.model, self.batch = model, (task.train_inputs, task.train_targets)
        self.optimizer = SharpnessAware(base, method, model=model)
        self.objective: Objective = objective_of(model, squared_error, self.batch)
        self.tracker = EigenTracker(self.preset["eigenvalues"], tol=0.02)
        self.before = V.clone(self.objective.weights)

    def run(self, progress: Progress) -> Values:
        """All steps, or until a measurement finds a loss that is NaN or infinite; then a list for each quantity."""
        steps, measured = self.preset["steps"], self.preset["measured"]
        for step in range(steps):
            if step % measured or step == 0:
                self._step()
            elif math.isfinite(float(self.objective.value())):
                self.records.append({"step": step} | self._measured())
            else:
                break
            progress(step + 1, steps)
        return {name: [record[name] for record in self.records] for name in (self.records or [{}])[0]}

    def _step(self) -> Vector:
        """One step; returns what it adds to the weights."""
        self.before = V.clone(self.objective.weights)
        self.optimizer.step(self._closure)
        return V.add(self.objective.weights, self.before, -1.0)

    def _closure(self) -> Tensor:
        loss = squared_error(self.model(self.batch[0]), self.batch[1])
        loss.backward()
        return loss

    def _measured(self) -> Values:
        """Measure at the weights, then take the step."""
        last = V.add(self.objective.weights, self.before, -1.0)
        loss, gradient = self.objective.value_and_gradient()
        pairs = self._pairs()
        step = self._step()
        tracked = self._tracked(gradient)
        along = tracked.pop("vector", pairs.vectors[0])
        return {
            "loss": float(loss),
            "gradient_norm": float(V.norm(gradient)),
            "eigenvalues": list(pairs.values),
            "cosines": [float(V.cosine(gradient, vector)) for vector in pairs.vectors],
            "displacement_norm": self.optimizer.diagnostics["displacement_norm"],
            "reversal": float(V.dot(step, along)) / (float(V.dot(last, along)) or math.nan),
        } | tracked

    def _pairs(self) -> EigenPairs:
        """A pair that has not converged serves as well as it can: eigenvalues crowd at an edge."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="not converged")
            return self.tracker.update(hessian(self.objective))

    def _tracked(self, gradient: Vector) -> Values:
        """What the method's own eigenvector, that of the step just taken, was at the weights before; nothing without one."""
        entries = self.optimizer.state_dict()["state"].values()
        vector: Vector = [entry.get(f"flatwise.{EIGENVECTOR}") for entry in entries]
        if not V.present(vector):
            return {}
        with self.objective.displaced() as place:
            place.at(self.before)
            value = float(V.dot(vector, hessian(self.objective)(vector)))
        return {"vector": vector, "tracked_value": value, "tracked_cosine": abs(float(V.cosine(gradient, vector)))}
