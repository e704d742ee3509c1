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
from flatwise.curvature import EigenTracker, Operator, hessian, trace
from flatwise.modules import measuring
from flatwise.objective import Objective
from flatwise.tasks import Task
from flatwise.training.batches import chunks
from flatwise.training.config import TrainConfig
from flatwise.training.edges import edges, is_derived
from flatwise.training.setup import Loss
from flatwise.training.validation import Batch
from flatwise.vectors import Vector

SPLITS = ("train", "validation", "test")
"""The data on which loss and accuracy are measured; without a validation split there is none."""


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
    """Measures losses, accuracies, the gradient, and the Hessian: its top eigenpair, warm-started by the one before; its trace at
    the end.

    Args:
        config: resolved settings.
        task: the data.
        model: the network.
        loss: the mean loss of outputs and targets.
        full_batch: whether each step sees all training samples; only then is there an edge of stability.
        validation: samples that are not trained on.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        model: nn.Module,
        loss: Loss,
        *,
        full_batch: bool,
        validation: Batch | None = None,
    ) -> None:
        inputs, targets = _chosen(config, task)
        self._config = config
        self._model, self._loss = model, loss
        self._train = list(chunks(inputs, targets))
        splits = ((inputs, targets), validation, (task.test_inputs, task.test_targets))
        self._splits = {name: list(chunks(*split)) for name, split in zip(SPLITS, splits, strict=True) if split}
        self.objective = objective_of(model, loss, (inputs, targets))
        self.tracker = EigenTracker(tol=config.eigen_tol)
        self._on = f"{len(inputs):,} training samples, evaluation mode, float32"
        self._has_edge = is_derived(config, full_batch=full_batch, mode_matters=self._mode_matters())

    def measure(self, lr: float, rho: float | None, step: int | None = None, *, last: bool = False) -> Measurement:
        """Everything that is measured at the weights as they are; `lr` and `rho` are those of the coming step, `step`.

        The trace is measured at the `last` ones only.
        """
        values: dict[str, Any] = {"on": self._on}
        for name, batches in self._splits.items():
            values[f"{name}_loss"], values[f"{name}_accuracy"] = self._evaluate(batches)
        gradient = self.objective.gradient()
        values["gradient_norm"] = float(V.norm(gradient))
        measurement = Measurement(values)
        finite = math.isfinite(values["train_loss"]) and math.isfinite(values["gradient_norm"])
        if finite and self._config.curvature:
            self._measure_curvature(measurement, step, last=last)
            measurement.align("gradient", gradient)
            if self._has_edge and lr > 0:
                measurement.values |= edges(self._config, lr, rho, values["gradient_norm"])
        return measurement

    def _mode_matters(self) -> bool:
        """Whether the model computes something else in training mode (BatchNorm, dropout)."""
        inputs = self._train[0][0][:16]
        with torch.no_grad(), measuring(self._model, "train"):
            training = self._model(inputs)
        with torch.no_grad(), measuring(self._model, "eval"):
            return not torch.equal(training, self._model(inputs))

    def _measure_curvature(self, measurement: Measurement, step: int | None, *, last: bool) -> None:
        with warnings.catch_warnings():  # a pair that has not converged says so by its residual, which is recorded
            warnings.filterwarnings("ignore", message="not converged")
            operator = hessian(self.objective, step=step)
            pairs = self.tracker.update(operator)
        measurement.eigenvector = pairs.vectors[0]
        measurement.values |= {
            "top_eigenvalue": float(pairs.values[0]),
            "residual": float(pairs.residuals[0]),
            "products": pairs.products,
        }
        if last and self._config.trace_samples:
            measurement.values |= self._trace(operator)
        drawn = {"seed": self._config.seed} if self._config.probe_samples else {}
        data = {"data": self._config.data, "split": "train", **drawn}
        record = {} if operator.record is None else vars(operator.record)
        measurement.circumstances = {"on": self._on, "drawn": data, "tol": self._config.eigen_tol, **record}

    def _trace(self, operator: Operator) -> dict[str, Any]:
        """The trace and its standard error, by an estimator that keeps no more than two vectors."""
        found = trace(operator, self._config.trace_samples, method="hutchinson", seed=self._config.seed)
        return {"trace": found.value, "trace_error": found.standard_error, "trace_products": found.products}

    @torch.no_grad()
    def _evaluate(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """The mean loss and the accuracy (a share, 0 to 1), over targets: of tokens where a sample has several."""
        loss, right, number = 0.0, 0, 0
        with measuring(self._model, "eval"):
            for inputs, targets in batches:
                outputs = self._model(inputs)
                loss += float(self._loss(outputs, targets)) * targets.numel()
                right += int((outputs.argmax(-1) == targets).sum())
                number += targets.numel()
        return loss / number, right / number


def objective_of(model: nn.Module, loss: Loss, data: Batch) -> Objective:
    """The mean loss of some data in evaluation mode, as a function of the weights; each process has all of the data."""

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    return Objective(model, loss_of, list(chunks(*data)), mode="eval", group=None)


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
