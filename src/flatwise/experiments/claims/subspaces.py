"""Does learning happen in the space of the top eigenvectors, in which the gradient lies?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature import eigenspace, hessian
from flatwise.experiments.claims.claim import Claim, Criterion, Outcome, Panel, Values
from flatwise.experiments.claims.lines import band
from flatwise.experiments.claims.records import recorded
from flatwise.methods import SAM, SGD, Bulk, Dialogue, Dominant
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.tasks import build_model, load_data
from flatwise.training.batches import Batches
from flatwise.vectors import Vector

METHODS: dict[str, Callable[[Values], Dialogue]] = {"SGD": lambda _: SGD(), "SAM": lambda preset: SAM(preset["rho"])}
BRANCHES = {"all": "the whole update", "dominant": "its part in the dominant space", "bulk": "the rest of it"}
STOPS, AS_GOOD = 0.25, 0.9
"""Of the fall with whole updates: below the first the loss has stopped falling, above the second it falls as before; ours."""


def measure(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """A method until its updates lie in the dominant space; from there the whole updates, their parts in it, and off it."""
    del folder
    study = Study(preset, METHODS[cell["method"]](preset), seed)
    total, latest = preset["latest"] + len(BRANCHES) * preset["steps"], preset["latest"]
    switch = study.align(lambda step: progress(step, total))
    place = V.clone(study.weights)
    found: Values = {"switch": switch, "aligned": study.memory, "record": recorded(hessian(study.objective))}
    for i, branch in enumerate(BRANCHES):
        V.copy_(study.weights, place)
        before = latest + i * preset["steps"]
        found[branch] = study.follow(branch, switch, lambda step, before=before: progress(before + step, total))
    return found


class Study:
    """A fully connected network that learns with squared error, in small steps of one method.

    Attributes:
        weights: live.
        memory: the moving average of the share of the updates' length in the dominant space; 0 before the first look.
    """

    def __init__(self, preset: Values, method: Dialogue, seed: int) -> None:
        task = load_data(preset["data"], seed=seed, subset=preset["subset"])
        self.preset, self.method = preset, method
        self.model = build_model("mlp", task, seed, widths=preset["widths"])
        self.batches = Batches(task, preset["batch_size"], seed)
        self.objective = Objective(self.model, _loss, [(task.train_inputs, task.train_targets)])
        self.weights, self.memory = self.objective.weights, 0.0
        self._space = eigenspace(self.objective, preset["tol"])
        self._basis = [V.zeros_like(self.weights) for _ in range(preset["k"])]

    def align(self, tell: Callable[[int], object]) -> int:
        """Take steps until the updates are aligned with the dominant space, `latest` at most; returns how many."""
        optimizer = self._optimizer(self.method)
        for step in range(self.preset["latest"]):
            if step % self.preset["every"]:
                self.step(optimizer, step)
            elif self._remembered(self.share_of_step(optimizer, step)) > self.preset["aligned"]:
                return step + 1
            tell(step + 1)
        return self.preset["latest"]

    def follow(self, branch: str, start: int, tell: Callable[[int], object]) -> Values:
        """Take steps with a part of each update: the training losses on the way, and for whole updates their shares."""
        optimizer, steps, look = self._optimizer(self._projected(branch)), self.preset["steps"], self.preset["look"]
        losses, shares = [float(self.objective.value())], list[float]()
        for step in range(1, steps + 1):
            looks = step % look == 0
            if looks and branch == "all":
                shares.append(self.share_of_step(optimizer, start + step))
            else:
                self.step(optimizer, start + step)
            losses += [float(self.objective.value())] if looks else []
            tell(step)
        return {"steps": list(range(0, steps + 1, look)), "losses": losses, "shares": shares}

    def step(self, optimizer: SharpnessAware, number: int) -> Vector:
        """One step on the batch of that number; returns the update."""
        before = V.clone(self.weights)
        batch = self.batches.at(number)
        for p in optimizer.passes():
            p.backward(_loss(self.model, batch))
        optimizer.step()
        return V.add(self.weights, before, -1.0)

    def share_of_step(self, optimizer: SharpnessAware, number: int) -> float:
        """The same step, and the share of its length in the dominant space at the weights from which it starts."""
        self._basis = self._space(self._basis, list(self.model.parameters()))
        update = self.step(optimizer, number)
        inside = math.sqrt(sum(float(V.dot(vector, update)) ** 2 for vector in self._basis))
        return inside / float(V.norm(update))

    def _remembered(self, share: float) -> float:
        """The moving average with memory 0.9, as if what was before its beginning had been 0."""
        self.memory = 0.9 * self.memory + 0.1 * share
        return self.memory

    def _projected(self, branch: str) -> Dialogue:
        if branch == "all":
            return self.method
        kind = Dominant if branch == "dominant" else Bulk
        return kind(self.method, k=self.preset["k"], every=self.preset["every"], subspace=self._space)

    def _optimizer(self, method: Dialogue) -> SharpnessAware:
        base = torch.optim.SGD(self.model.parameters(), lr=self.preset["lr"])
        return SharpnessAware(base, method, model=self.model)


def _loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Half the squared distance of the outputs from one-hot targets, the mean over samples."""
    outputs = model(batch[0])
    return (outputs - torch.nn.functional.one_hot(batch[1], outputs.shape[1])).square().sum(1).mean() / 2


def fall(branch: Values) -> float:
    """By how much the logarithm of the training loss has fallen: from the switch to the mean of the last fifth of the looks."""
    losses = branch["losses"]
    end = losses[-max(1, len(losses) // 5) :]
    return math.log(losses[0]) - math.log(fmean(end))


def _share_of_fall(cell: Values, branch: str) -> float:
    whole = fall(cell["all"])
    return fall(cell[branch]) / whole if whole > 0 else math.nan


def _judge(preset: Values, seeds: Sequence[Sequence[Values]]) -> Outcome:
    names = [cell["method"] for cell in preset["cells"]]
    of_methods = [(name, [cells[i] for cells in seeds]) for i, name in enumerate(names)]
    criteria = [criterion for name, cells in of_methods for criterion in _criteria(name, cells)]
    return Outcome(criteria, [_panel(name, cells) for name, cells in of_methods])


def _criteria(name: str, cells: Sequence[Values]) -> list[Criterion]:
    """Of one method."""
    of_fall = (
        "The fall of the logarithm of the training loss after the switch, as a share of that with whole updates; none where "
        "these do not lower it."
    )
    whole = [cell["all"]["shares"] for cell in cells]
    parts = {branch: [_share_of_fall(cell, branch) for cell in cells] for branch in BRANCHES}
    return [
        Criterion(
            f"{name}: in the dominant space",
            "Mean share of the updates' squared length that lies in it, of whole updates.",
            [fmean(s * s for s in shares) for shares in whole],
            0.5,
        ),
        Criterion(f"{name}: fall with the dominant part", of_fall, parts["dominant"], None, STOPS),
        Criterion(f"{name}: fall with the bulk part", of_fall, parts["bulk"], AS_GOOD),
        Criterion(
            f"{name}: length in the dominant space",
            "Mean share of the updates' length that lies in it. The paper switches at 0.95.",
            [fmean(shares) for shares in whole],
            0.95,
            decisive=False,
        ),
    ]


def _panel(name: str, cells: Sequence[Values]) -> Panel:
    lines = [
        band(label, cells[0][branch]["steps"], [cell[branch]["losses"] for cell in cells])
        for branch, label in BRANCHES.items()
    ]
    return Panel(f"{name}: training loss", "steps after the switch", "training loss", lines, "y")


_SMALL: Values = {
    "cells": [{"method": "SGD"}, {"method": "SAM"}],
    "data": "digits",
    "subset": 1000,
    "widths": [32, 32],
    "batch_size": 50,
    "lr": 0.1,
    "rho": 0.1,
    "k": 10,
    "every": 5,
    "tol": 0.1,
    "aligned": 0.95,
    "latest": 500,
    "steps": 500,
    "look": 25,
}

TINY_SUBSPACES = Claim(
    name="tiny-subspaces",
    statement=(
        "Most of the updates of SGD and of SAM lies in the space of the Hessian's top k eigenvectors, yet without the "
        "rest of them the training loss stops falling, and without that part it falls as before."
    ),
    source="arXiv 2405.16002",
    protocol=(
        "Squared error (half the squared distance, the mean over samples), a fully connected ReLU network, batches of "
        "50, k = 10 classes, constant learning rate, no momentum. SGD, or SAM, until the moving average (memory 0.9) "
        "of the share of an update's length in the dominant space is above 0.95, at the latest at a fixed step; from "
        "there three branches with the same batches: whole updates, their parts in the space (Dom-SGD), what is left "
        "(Bulk-SGD). The eigenvectors are those of the whole training loss. A replication that names the paper's "
        "appendix has 5,000 MNIST images, 20,000 steps, learning rate 0.01, eigenvectors at every step; the network "
        "and the settings of SAM are not known to us. The small scale has digits, learning rate 0.1, rho 0.1 and "
        "eigenvectors at every fifth step, to a residual of a tenth of the largest eigenvalue. Pilots (seed 100) "
        "chose the length and the learning rate; in them the share was about 0.8, so that the switch is at the fixed "
        "step, and 'most' is taken as half of the squared length. 'Stops': the logarithm of the loss falls by at most "
        f"{STOPS:g} of what it does with whole updates; 'as before': by at least {AS_GOOD:g} of it. Both are ours."
    ),
    scales={
        "smoke": _SMALL | {"subset": 50, "widths": [4], "k": 2, "latest": 4, "steps": 4, "look": 2},
        "small": _SMALL,
        "paper": _SMALL
        | {
            "data": "mnist",
            "subset": 5000,
            "widths": [200, 200],
            "lr": 0.01,
            "every": 1,
            "tol": 0.01,
            "latest": 10000,
            "steps": 10000,
            "look": 100,
        },
    },
    seeds={"smoke": 2, "small": 5, "paper": 5},
    measure=measure,
    judge=_judge,
)
