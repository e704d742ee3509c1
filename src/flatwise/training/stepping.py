"""One step of a run on one batch: the passes that the method asks for, then the base optimizer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatwise.optim import SharpnessAware
from flatwise.optim.passes import Pass
from flatwise.training.batches import chunks, part_of
from flatwise.training.config import TrainConfig
from flatwise.training.distributed import World
from flatwise.training.setup import build_losses


class Stepping:
    """Takes the steps of a run.

    Args:
        config: resolved.
        model: the network, or what was made of it for several processes.
        optimizer: around its parameters.
        world: the processes that share every batch.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, optimizer: SharpnessAware, world: World | None = None
    ) -> None:
        self._config, self._model, self._optimizer = config, model, optimizer
        self._world = world or World()
        self._losses = build_losses(config)

    def take(self, inputs: Tensor, targets: Tensor, lr: float, look: Callable[[Pass], object] = id) -> None:
        """One step on a batch; `look` is called in every pass, where the weights are displaced as the method asked for."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        parts = None if self._config.parts is None else min(self._config.parts, len(targets))
        for p in self._optimizer.passes(parts=parts, each=parts is not None):
            look(p)
            for chunk in chunks(*part_of(inputs, targets, parts, p.part)):
                losses = p.chosen(self._losses_of(*self._world.share(*chunk)))
                p.backward(losses.mean(), weight=len(losses))
        self._optimizer.step()

    def _losses_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        bfloat16 = self._config.precision == "bfloat16"
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=bfloat16), _compiling():
            return self._losses(self._model(inputs), targets)


@contextmanager
def _compiling() -> Generator[None]:
    """Say in a sentence that `torch.compile` has failed; it compiles when the network first runs.

    Raises:
        ValueError: with the way out.
    """
    try:
        yield
    except RuntimeError as error:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None or not isinstance(error, dynamo.exc.BackendCompilerFailed):
            raise
        cause = str(error).strip().splitlines()[0]
        raise ValueError(
            f"torch.compile could not compile the network ({cause}); on a CPU it needs a C++ compiler, g++ or the one that "
            "the environment variable CXX names. Install one, or leave compile out"
        ) from error
