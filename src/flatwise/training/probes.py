"""The measurements of a run: on fixed samples, in evaluation mode, in float32. Measuring changes nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatwise import vectors as V
from flatwise.curvature import EigenTracker, hessian
from flatwise.modules import measuring
from flatwise.objective import Objective
from flatwise.tasks import Task
from flatwise.training.batches import chunks
from flatwise.training.config import TrainConfig
from flatwise.training.edges import edges, is_derived
from flatwise.training.setup import Loss
from flatwise.vectors import Vector

Batch = tuple[Tensor, Tensor]


@dataclass
class Measurement:
    """What was measured at the weights.

    Attributes:
        values: the numbers for the record.
        eigenvector: the top one; None when it was not found.
        circumstances: how curvature was measured: on which data, in which precision, to which residual. None when it was not.
    """

    values: dict[str, Any]
    eigenvector: Vector | None = None
    circumstances: dict[str, Any] | None = None

    def align(self, name: str, vector: Vector | None) -> None:
        """Take up |cos| of a vector with the top eigenvector; nothing where either is missing."""
        if self.eigenvector is not None and vector is not None:
            self.values[f"alignment_{name}"] = abs(float(V.cosine(vector, self.eigenvector)))


class Probe:
    """Measures losses, accuracies, the gradient and the top eigenpair, which is warm-started by the one before.

    Args:
        config: resolved settings.
        task: the data.
        model: the network.
        loss: the mean loss of outputs and targets.
        full_batch: whether each step sees all training samples; only then is there an edge of stability.
    """

    def __init__(self, config: TrainConfig, task: Task, model: nn.Module, loss: Loss, *, full_batch: bool) -> None:
        inputs, targets = _chosen(config, task)
        self._config = config
        self._model, self._loss = model, loss
        self._train = list(chunks(inputs, targets))
        self._test = list(chunks(task.test_inputs, task.test_targets))
        self._objective = Objective(
            model, lambda model, batch: loss(model(batch[0]), batch[1]), self._train, mode="eval"
        )
        self.tracker = EigenTracker(tol=config.eigen_tol)
        self._on = f"{len(inputs):,} training samples, evaluation mode, float32"
        self._has_edge = is_derived(config, full_batch=full_batch, mode_matters=self._mode_matters())

    def measure(self, lr: float, rho: float | None, step: int | None = None) -> Measurement:
        """Everything that is measured at the weights as they are; `lr` and `rho` are those of the coming step, `step`."""
        values: dict[str, Any] = {"on": self._on}
        values["train_loss"], values["train_accuracy"] = self._evaluate(self._train)
        values["test_loss"], values["test_accuracy"] = self._evaluate(self._test)
        gradient = self._objective.gradient()
        values["gradient_norm"] = float(V.norm(gradient))
        measurement = Measurement(values)
        if math.isfinite(values["train_loss"]) and math.isfinite(values["gradient_norm"]):
            self._measure_curvature(measurement, step)
            measurement.align("gradient", gradient)
            if self._has_edge and lr > 0:
                measurement.values |= edges(
                    self._config, lr, rho, values["gradient_norm"], values["alignment_gradient"]
                )
        return measurement

    def _mode_matters(self) -> bool:
        """Whether the model computes something else in training mode (BatchNorm, dropout)."""
        inputs = self._train[0][0][:16]
        with torch.no_grad(), measuring(self._model, "train"):
            training = self._model(inputs)
        with torch.no_grad(), measuring(self._model, "eval"):
            return not torch.equal(training, self._model(inputs))

    def _measure_curvature(self, measurement: Measurement, step: int | None) -> None:
        with warnings.catch_warnings():  # a pair that has not converged says so by its residual, which is recorded
            warnings.filterwarnings("ignore", message="not converged")
            operator = hessian(self._objective, step=step)
            pairs = self.tracker.update(operator)
        measurement.eigenvector = pairs.vectors[0]
        measurement.values |= {
            "top_eigenvalue": float(pairs.values[0]),
            "residual": float(pairs.residuals[0]),
            "products": pairs.products,
        }
        drawn = {"seed": self._config.seed} if self._config.probe_samples else {}
        data = {"data": self._config.data, "split": "train", **drawn}
        record = {} if operator.record is None else vars(operator.record)
        measurement.circumstances = {"on": self._on, "drawn": data, "tol": self._config.eigen_tol, **record}

    @torch.no_grad()
    def _evaluate(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """The mean loss and the accuracy (a share, 0 to 1)."""
        loss, right, number = 0.0, 0, 0
        with measuring(self._model, "eval"):
            for inputs, targets in batches:
                outputs = self._model(inputs)
                loss += float(self._loss(outputs, targets)) * len(targets)
                right += int((outputs.argmax(-1) == targets).sum())
                number += len(targets)
        return loss / number, right / number


def _chosen(config: TrainConfig, task: Task) -> Batch:
    """The fixed samples: all training samples, or as many as asked for, drawn by the seed."""
    if config.probe_samples is None:
        return task.train_inputs, task.train_targets
    if config.probe_samples > len(task.train_inputs):
        raise ValueError(
            f"probe_samples is {config.probe_samples}, but there are only {len(task.train_inputs)} training samples"
        )
    order = torch.randperm(len(task.train_inputs), generator=torch.Generator().manual_seed(config.seed))
    places = order[: config.probe_samples]
    return task.train_inputs[places], task.train_targets[places]
