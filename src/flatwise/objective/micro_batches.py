"""Cutting batches where memory is short: how small, and whether the loss allows it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from flatwise import vectors as V
from flatwise.objective.batches import samples, slices

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective

TOLERANCE = 1e-3
"""Relative: the loss of a batch and the mean over its parts are sums in another order."""


def check_mean(objective: Objective, size: int) -> None:
    """Compare the loss of some samples with the weighted mean over two unequal parts of them.

    Raises:
        ValueError: they differ, so the loss of a batch is no mean over its samples.
    """
    if mixes_samples(objective):
        raise ValueError(
            "BatchNorm in training mode mixes the samples of a batch, so batches cannot be cut; use larger memory"
        )
    with objective.evaluation():
        batch = objective.first()
    trial = objective.without_noise() if objective.in_step else objective.without_noise().alone()
    if batch is None and not objective.in_step:
        return
    some = [] if batch is None else [objective.beginning(batch, max(2 * size, 3))]
    parts = [part for batch in some for part in slices(batch, max(1, 2 * samples(batch) // 3))]
    whole, mean = float(trial.on(some).value()), float(trial.on(parts).value())
    if not abs(whole - mean) <= max(TOLERANCE, 2 * V.epsilon(objective.weights)) * max(abs(whole), abs(mean)):
        raise ValueError(
            f"the loss of a batch, {whole:.6g}, is not the mean over its parts, {mean:.6g}, so batches cannot be cut: either the "
            "loss is a mean over something else than samples (tokens? then weight=... must count them), or a layer mixes the "
            "samples of a batch"
        )


@contextmanager
def advised() -> Generator[None]:
    """Where memory runs out, the error says what takes less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(
            "flatwise: Objective(..., micro_batch=16) or max_memory=bytes evaluates batches in parts, and "
            'hessian(objective, engine="differences") takes the memory of a gradient'
        )
        raise


def mixes_samples(objective: Objective) -> bool:
    """Whether a BatchNorm computes with the statistics of the batch."""
    training = {"train": True, "eval": False}.get(objective.mode)
    return any(
        m.running_mean is None or (m.training if training is None else training)
        for m in objective.model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    )
