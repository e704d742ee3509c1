"""What a measurement takes, without a clock: floating-point operations, and passes through the network."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class TooMuch(Exception):
    """More operations than were allowed."""


class Operations(TorchDispatchMode):
    """Inside, the floating-point operations of all convolutions and matrix products are added up, of every derivative.

    Args:
        limit: raise `TooMuch` after so many.
    """

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self.total = 0
        self._limit = limit

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
            if self.total > self._limit:
                raise TooMuch
        return result


@dataclass
class Passes:
    """How often the network was gone through forward, and how often a derivative came back through its output."""

    forward: float = 0.0
    backward: float = 0.0


@contextmanager
def passes(model: nn.Module, samples: int) -> Generator[Passes]:
    """Count passes of so many samples through a model inside; one of fewer samples is a part of a pass.

    Differentiating twice is one forward and two backward passes.
    """
    counted = Passes()

    def came_back(gradient: Tensor) -> None:
        counted.backward += len(gradient) / samples

    def went_through(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counted.forward += len(output) / samples
        if output.requires_grad:
            output.register_hook(came_back)

    handle = model.register_forward_hook(went_through)
    try:
        yield counted
    finally:
        handle.remove()


def operations_of(action: Any) -> int:
    """The operations that an action takes."""
    with Operations() as counted:
        action()
    return counted.total


def gradient(model: nn.Module, loss: Any, batch: Any) -> tuple[Tensor, ...]:
    """One gradient, the unit of everything: forward and backward, plain."""
    with torch.enable_grad():
        return torch.autograd.grad(loss(model, batch), list(model.parameters()))
