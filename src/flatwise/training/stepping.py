"""One step of a run on one batch: the passes that the method asks for, then the base optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flatwise.optim import SharpnessAware
from flatwise.optim.passes import Pass
from flatwise.training.batches import chunks, part_of
from flatwise.training.config import TrainConfig
from flatwise.training.setup import build_losses


class Stepping:
    """Takes the steps of a run.

    Args:
        config: resolved.
        model: the network.
        optimizer: around its parameters.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, optimizer: SharpnessAware) -> None:
        self._config, self._model, self._optimizer = config, model, optimizer
        self._losses = build_losses(config)

    def take(self, inputs: Tensor, targets: Tensor, lr: float, look: Callable[[Pass], object] = id) -> None:
        """One step on a batch; `look` is called in every pass, where the weights are displaced as the method asked for."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        parts = None if self._config.parts is None else min(self._config.parts, len(targets))
        for p in self._optimizer.passes(parts=parts, each=parts is not None):
            look(p)
            for x, y in chunks(*part_of(inputs, targets, parts, p.part)):
                with torch.autocast("cpu", torch.bfloat16, enabled=self._config.precision == "bfloat16"):
                    losses = p.chosen(self._losses(self._model(x), y))
                p.backward(losses.mean(), weight=len(losses))
        self._optimizer.step()
