"""A training whose curvature is measured every so many steps; it goes on where it was interrupted."""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatwise import vectors as V
from flatwise.curvature import EigenPairs, EigenTracker, hessian
from flatwise.experiments.claims.claim import Values
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.runs import RunError, replacing
from flatwise.tasks import Task
from flatwise.training.batches import Batches
from flatwise.vectors import Vector

Batch = tuple[Tensor, Tensor]

CHECKPOINT = "checkpoint.pt"


def drawable(runs: Sequence[Values]) -> list[Values]:
    """Those in which something was measured before they ended."""
    return [run for run in runs if run.get("step")]


class Following(ABC):
    """One training.

    Args:
        preset: `batch_size` (0: all, the default), `steps`, `measured` (steps between two measurements; odd, so that both
            sides of a swing with period two are seen), `eigenvalues` (how many) and `tol` (of the tracker, default 0.02).
        cell: what else its numbers hang on.
        seed: of the order of the batches.
        folder: for its checkpoint.
        task: the data.
        model: the network.
        optimizer: of the network.
        loss: from outputs and targets of a batch to their mean loss.
    """

    first = 0
    """The first step before which it is measured."""

    def __init__(
        self,
        preset: Values,
        cell: Values,
        seed: int,
        folder: Path,
        task: Task,
        model: nn.Module,
        optimizer: SharpnessAware,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.preset, self.cell, self.folder = preset, cell, folder
        self._settings = json.dumps([preset, cell, seed], sort_keys=True)
        self.batches = Batches(task, preset.get("batch_size", 0), seed)
        self.model, self.optimizer = model, optimizer
        self.tracker = EigenTracker(preset["eigenvalues"], tol=preset.get("tol", 0.02))
        self.records: list[Values] = []
        self._loss = loss

    def run(self, progress: Progress) -> Values:
        """All steps, or until a measurement finds that it has diverged; then a list for each quantity."""
        steps = self.preset["steps"]
        for step in range(self._resume(), steps):
            batch = self.batches.at(step)
            if step % self.preset["measured"] or step < self.first:
                self.step(batch)
                continue
            if (found := self._measured(step, batch)) is None:
                break
            self.records.append({"step": step} | found)
            progress(step + 1, steps)  # told from one measurement to the next, as they take most of the time
        return {name: [record[name] for record in self.records] for name in (self.records or [{}])[0]}

    @abstractmethod
    def measure_and_step(
        self, objective: Objective, loss: float, gradient: Vector, pairs: EigenPairs, batch: Batch
    ) -> Values:
        """Take the step; return what is recorded of the weights before it, whose loss, gradient and top pairs are given."""

    def step(self, batch: Batch) -> None:
        """One step of the training."""
        self.optimizer.step(partial(self._backward, batch))

    def state(self) -> dict[str, Any]:
        """Everything from which the training continues, but for the number of steps taken."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"records": self.records}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.records = state["records"]

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "tracker": self.tracker}

    def _backward(self, batch: Batch) -> Tensor:
        loss = self._mean(self.model, batch)
        loss.backward()
        return loss

    def _mean(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss(model(batch[0]), batch[1])

    def _measured(self, step: int, batch: Batch) -> Values | None:
        """None where the loss or its gradient is no finite number."""
        self._save(step)
        objective = Objective(self.model, self._mean, [batch])
        loss, gradient = objective.value_and_gradient()
        if not math.isfinite(float(loss) + float(V.norm(gradient))):
            return None
        return self.measure_and_step(objective, float(loss), gradient, self._pairs(objective), batch)

    def _pairs(self, objective: Objective) -> EigenPairs:
        """A pair that has not converged serves as well as it can: eigenvalues crowd at an edge. Its residual tells."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="not converged")
            return self.tracker.update(hessian(objective))

    def _save(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / CHECKPOINT) as draft:
            torch.save({"settings": self._settings, "step": step} | self.state(), draft)

    def _resume(self) -> int:
        """Load what is there; the number of steps already taken.

        Raises:
            RunError: it is of another training.
        """
        place = self.folder / CHECKPOINT
        if not place.exists():
            return 0
        known = torch.load(place, weights_only=True)
        if known["settings"] != self._settings:
            raise RunError(f"{place} is of a training with other settings; choose another folder (--out), or delete it")
        self.load(known)
        return known["step"]
