"""Flat minima or averaged weights? SAM, averages of SGD's weights, and both, for as many gradient evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from flatwise.curvature import hessian, top_eigenpairs
from flatwise.experiments.claims.claim import Claim, Criterion, Line, Outcome, Panel, Values
from flatwise.experiments.claims.records import recorded
from flatwise.experiments.claims.stages import Stages, stage_of
from flatwise.processes import Progress
from flatwise.tasks import Task
from flatwise.training import TrainConfig, resolved
from flatwise.training.batches import Batches
from flatwise.training.loop import load_task
from flatwise.training.probes import objective_of
from flatwise.training.setup import build_loss, build_method, build_network, build_optimizer

SGD, SAM = "SGD", "SAM"
AVERAGES = ("SWA", "EMA")
ARMS = (SGD, *(f"{SGD} + {a}" for a in AVERAGES), SAM, *(f"{SAM} + {a}" for a in AVERAGES))


def measure(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """Two methods, each with a learning rate that goes to 0 and with one that stays, of which the weights are averaged."""
    stages = Stages(folder, {"preset": preset, "cell": cell, "seed": seed})
    found: Values = {}
    parts = [(method, averaged) for method in (SGD, SAM) for averaged in (False, True)]
    for i, (method, averaged) in enumerate(parts):
        make = partial(_trained, preset, cell, method, averaged, seed, stage_of(progress, i, len(parts)))
        found |= stages.keep(f"{method}{'-averaged' if averaged else ''}", make)
    return found


def _trained(preset: Values, cell: Values, method: str, averaged: bool, seed: int, tell: Progress) -> Values:
    run = Averaging(preset, cell, method, averaged, seed)
    run.train(tell)
    return run.found()


class Averaging:
    """One training, and the averages of its weights.

    Attributes:
        steps: how many; SAM takes half of SGD's, as each costs two evaluations.
        swa, ema: networks with the mean of the weights after each epoch of the second half, and with the moving average of all.
    """

    def __init__(self, preset: Values, cell: Values, method: str, averaged: bool, seed: int) -> None:
        own = cell["methods"][method] | {"seed": seed}
        self.label, self.averaged, self.preset, self.cell = method, averaged, preset, cell
        self.config = resolved(TrainConfig.from_dict(cell["settings"] | own))
        self.task: Task = load_task(self.config)
        self.model = build_network(self.config, self.task)
        self.loss = build_loss(self.config)
        self.batches = Batches(self.task, self.config.batch_size, seed)
        self.steps = cell["epochs"] * self.batches.per_epoch // (2 if method == SAM else 1)
        self.optimizer = build_optimizer(self.config, self.model, build_method(self.config, self.steps))
        self.swa = AveragedModel(self.model)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(preset["decay"]))

    def train(self, tell: Callable[[int, int], object]) -> None:
        """All steps."""
        for step in range(self.steps):
            self._set(self.rate(step))
            inputs, targets = self.batches.at(step)
            for p in self.optimizer.passes():
                p.backward(self.loss(self.model(inputs), targets))
            self.optimizer.step()
            if self.averaged:
                self._average(step + 1)
            tell(step + 1, self.steps)

    def rate(self, step: int) -> float:
        """The learning rate: half a cosine to 0; for averages it stays at half of the first from half of the steps on."""
        factor = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return (self.config.lr or 0.0) * (max(factor, 0.5) if self.averaged else factor)

    def found(self) -> Values:
        """Accuracy and top eigenvalue of the weights, or of their averages, by the names of the arms."""
        if not self.averaged:
            return {self.label: self._seen(self.model)}
        return {
            f"{self.label} + {name}": self._seen(self._with_statistics(network))
            for name, network in zip(AVERAGES, (self.swa, self.ema), strict=True)
        }

    def _with_statistics(self, average: AveragedModel) -> nn.Module:
        """The network of an average, with BatchNorm's statistics of the training data where there is any."""
        update_bn([self.batches.at(step) for step in range(self.batches.per_epoch)], average)
        return average.module

    def _seen(self, model: nn.Module) -> Values:
        model.eval()
        chosen = slice(self.cell["measured"])
        objective = objective_of(model, self.loss, (self.task.train_inputs[chosen], self.task.train_targets[chosen]))
        operator = hessian(objective)
        pairs = top_eigenpairs(operator, 1, self.preset["tol"], target="values")
        return {
            "accuracy": accuracy(model, self.task),
            "eigenvalue": pairs.values[0],
            "evaluations": self.steps * (2 if self.label == SAM else 1),
            "record": recorded(operator),
        }

    def _set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _average(self, taken: int) -> None:
        self.ema.update_parameters(self.model)
        if taken > self.steps / 2 and taken % self.batches.per_epoch == 0:
            self.swa.update_parameters(self.model)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """On the test data, in percent, in the mode that the model is in."""
    pieces = zip(task.test_inputs.split(1000), task.test_targets.split(1000), strict=True)
    right = sum(int((model(inputs).argmax(1) == targets).sum()) for inputs, targets in pieces)
    return 100 * right / len(task.test_targets)


# --- the verdict ------------------------------------------------------------------------------------------------------

BOTH, OTHERS = f"{SAM} + SWA", (SAM, f"{SGD} + SWA")


def _points(cell: Values, first: str, second: str) -> float:
    return cell[first]["accuracy"] - cell[second]["accuracy"]


def _flatter(cell: Values, first: str, second: str) -> float:
    """The logarithm to base 2 of the ratio of the top eigenvalues; NaN where one is not positive."""
    ratio = cell[first]["eigenvalue"] / cell[second]["eigenvalue"]
    return math.log2(ratio) if ratio > 0 else math.nan


def _judge(preset: Values, seeds: Sequence[Sequence[Values]]) -> Outcome:
    criteria: list[Criterion] = []
    of_tasks = [(cell["name"], [cells[i] for cells in seeds]) for i, cell in enumerate(preset["cells"])]
    for task, cells in of_tasks:  # each by itself: the worse of two noisy numbers is below both
        criteria += _deciding(task, cells)
    for task, cells in of_tasks:
        criteria += _beside(task, cells)
    return Outcome(criteria, [_panel(task, cells) for task, cells in of_tasks])


def _panel(task: str, cells: Sequence[Values]) -> Panel:
    """Accuracy over the top eigenvalue, a point for each arm."""
    return Panel(task, "top eigenvalue", "test accuracy, %", [_point(arm, cells) for arm in ARMS], "x")


def _point(arm: str, cells: Sequence[Values]) -> Line:
    points = [cell[arm]["accuracy"] for cell in cells]
    top = fmean(cell[arm]["eigenvalue"] for cell in cells)
    return Line(arm, [top], [fmean(points)], [min(points)], [max(points)], "points")


def _deciding(task: str, cells: Sequence[Values]) -> list[Criterion]:
    """Both together beside each alone on one task."""
    points, ratio = "Points of test accuracy.", "Logarithm to base 2 of the ratio of the top eigenvalues."
    found: list[Criterion] = []
    for other in OTHERS:
        accuracies = [_points(cell, BOTH, other) for cell in cells]
        eigenvalues = [_flatter(cell, BOTH, other) for cell in cells]
        found.append(Criterion(f"{task}: {BOTH} less {other}, points", points, accuracies, 0.0))
        found.append(Criterion(f"{task}: {BOTH} to {other}, top eigenvalue", ratio, eigenvalues, None, 0.0))
    return found


def _beside(task: str, cells: Sequence[Values]) -> list[Criterion]:
    """Every arm beside SGD on one task: nothing is decided by these."""
    points, ratio = "Points of test accuracy, less SGD.", "Logarithm to base 2 of the top eigenvalue's ratio to SGD's."
    return [
        Criterion(f"{task}: {arm}, {what}", meaning, [of(cell, arm, SGD) for cell in cells], decisive=False)
        for what, meaning, of in (("points", points, _points), ("top eigenvalue", ratio, _flatter))
        for arm in ARMS[1:]
    ]


_DIGITS: Values = {
    "name": "digits",
    "epochs": 80,
    "measured": 1000,
    "settings": {"data": "digits", "label_noise": 0.4, "model": "mlp", "batch_size": 64, "lr": 0.05},
    "methods": {SGD: {"method": "sgd"}, SAM: {"method": "sam", "rho": 0.1}},
}
_FASHION: Values = {
    "name": "Fashion-MNIST",
    "epochs": 40,
    "measured": 500,
    "settings": {"data": "fashion-mnist", "subset": 2000, "model": "cnn6", "batch_size": 128, "lr": 0.03},
    "methods": {SGD: {"method": "sgd"}, SAM: {"method": "sam", "rho": 0.05}},
}
_SMALL: Values = {"cells": [_DIGITS, _FASHION], "decay": 0.98, "tol": 0.05}
_SMOKE: Values = {"epochs": 2, "measured": 32, "methods": _DIGITS["methods"]}

FLAT_OR_AVERAGED = Claim(
    name="flat-or-averaged",
    statement=(
        "SAM and averaged weights add up: on each of two tasks, for as many gradient evaluations, SAM with SWA is "
        "more accurate and flatter than SAM, and than SGD with SWA."
    ),
    source="derived here: a question of our own",
    protocol=(
        "Two tasks: digits with 40 % random training labels and a fully connected network, learning rate 0.05, rho "
        "0.1, 80 epochs; 2,000 images of Fashion-MNIST and six convolutions with BatchNorm, learning rate 0.03, rho "
        "0.05, 40 epochs. Momentum 0.9, weight decay 5e-4. SAM takes half as many epochs, so that both take as many "
        "gradient evaluations. Without averaging the learning rate goes to 0 along half a cosine. With averaging it "
        "follows that to the half of the steps and stays there: SWA is the mean of the weights after each epoch from "
        "then on, EMA the moving average of all steps with decay 0.98, from the same training. BatchNorm's statistics "
        "of an average are computed anew on the training data, which takes forward passes that are not counted. Top "
        "eigenvalues are those of the Hessian in evaluation mode on the training data (Fashion-MNIST: on 500 of it). "
        "Rates and radii are those of other claims here; a pilot (seed 100) with 20 epochs, learning rate 0.05 and "
        "rho 0.1 on Fashion-MNIST was too short for SAM, six points behind SGD. Each task decides by itself."
    ),
    scales={
        "smoke": _SMALL
        | {
            "cells": [
                _SMOKE | {"name": model, "settings": {"data": "digits", "subset": 64, "model": model}}
                for model in ("mlp", "cnn6")
            ]
        },
        "small": _SMALL,
    },
    seeds={"smoke": 2, "small": 5},
    measure=measure,
    judge=_judge,
)
