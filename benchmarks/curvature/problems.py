"""A trained network, its batch, the exact top of its spectrum, and the eigenvector of some steps earlier; kept on disk."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.curvature.reference import exact
from benchmarks.curvature.training import Batch, Training, blank, run, task_of
from flatwise.methods import SGD
from flatwise.tasks import Task
from flatwise.vectors import Vector

EARLIER = 20
"""Steps from the weights of the warm start's eigenvector to those that are measured."""

TOP = 10


@dataclass(frozen=True)
class Problem:
    """What every contender gets.

    Attributes:
        model: in evaluation mode.
        batch: inputs and targets.
        values: the exact largest eigenvalues, descending.
        start: the exact top eigenvector `EARLIER` steps before, as one vector, float32.
        alignment: |cos| of that with the exact one now.
    """

    model: nn.Module
    batch: Batch
    values: Tensor
    start: Tensor
    alignment: float

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def facts(self) -> dict[str, Any]:
        """What the page says of it."""
        return {"values": self.values.tolist(), "alignment": self.alignment, "parameters": len(self.start)}

    def start_parts(self) -> Vector:
        """The start in the shapes of the parameters."""
        parts = self.start.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


def problem(training: Training, seed: int, folder: Path) -> Problem:
    """From the folder, or trained and measured, and left there."""
    path = folder / f"{training.model}-{training.images}-{training.epochs}-seed-{seed}.pt"
    wanted = asdict(training) | {"earlier": EARLIER}
    kept: dict[str, Any] = torch.load(path) if path.exists() else {}
    if kept.get("training") != wanted:
        kept = {"training": wanted, **_made(training, seed)}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(kept, path)
    model = blank(training, kept["batch"])
    model.load_state_dict(kept["weights"])
    return Problem(model.eval(), kept["batch"], *(kept[name] for name in ("values", "start", "alignment")))


def _made(training: Training, seed: int) -> dict[str, Any]:
    """Train, and find the exact eigenpairs."""
    print(f"training {training.model} with seed {seed}, and its exact eigenvalues", flush=True)
    task = task_of(training, seed)
    batch = _first(task, training.measured)
    at = {s.index: copy.deepcopy(s.model) for s in run(training, task, SGD(), seed) if s.index in _looked_at(training)}
    earlier, now = (at[index] for index in _looked_at(training))
    before, top = exact(earlier, *batch), exact(now, *batch, k=TOP)
    return {
        "weights": now.state_dict(),
        "batch": batch,
        "values": top.values,
        "residuals": top.residuals,
        "start": before.vectors[:, 0].float(),
        "alignment": (before.vectors[:, 0] @ top.vectors[:, 0]).abs().item(),
    }


def _first(task: Task, count: int) -> Batch:
    return task.train_inputs[:count].clone(), task.train_targets[:count].clone()


def _looked_at(training: Training) -> tuple[int, int]:
    return training.steps - EARLIER, training.steps
