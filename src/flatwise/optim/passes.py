"""What a training loop meets: the passes of one step, and the single pass."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from math import isfinite
from typing import Any, Self

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods import At, Evaluation
from flatwise.optim import messages
from flatwise.optim.replicas import Replicas
from flatwise.vectors import Vector


class Pass:
    """One evaluation of the loss, driven by the user's own forward.

    Attributes:
        at_weights: whether the weights are the undisplaced ones.
        is_probe: whether this evaluation only measures (evaluation mode; its loss is not part of training).
        part: the part of the batch to evaluate, counted from 0, when `passes(parts=...)` was asked for; else 0.
    """

    def __init__(self, at: At, part: int, parameters: list[Tensor], replicas: Replicas, scaler: Any) -> None:
        self.at_weights = at.vector is None
        self.is_probe = at.probe
        self.part = part
        self._parameters = parameters
        self._replicas = replicas
        self._scaler = scaler
        self._loss = torch.zeros(())
        self._taken: Vector | None = None
        self._weight = 0.0
        self._accumulating = False
        self._waiting: list[float] = []
        self._open = True

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Run backward on the mean loss of one micro-batch; call it once per micro-batch.

        The pass's gradient is the weighted *mean* over its calls, unlike the sum that torch accumulates.

        Args:
            loss: a tensor with one element, from a forward run in this pass.
            weight: > 0, for micro-batches of unequal size.
        """
        self._check(loss, weight)
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        try:
            (scaled if weight == 1 else scaled * weight).backward()
        except RuntimeError as error:
            raise _explained(error) from error
        self._count(loss, weight)
        self._accumulating = True

    def record(self, loss: Tensor, weight: float = 1.0) -> None:
        """Take note of a micro-batch on which something else ran backward (Accelerate, Fabric, a closure).

        Its gradient is found in `.grad`: of the loss as it is, without the weight, and times the scale where there is a scaler.
        Micro-batches under DDP's `no_sync` wait there for the one that synchronises, and must have the same weight.

        Args:
            loss: its mean loss.
            weight: > 0, for micro-batches of unequal size.
        """
        self._check(loss, weight)
        if self._accumulating:
            raise RuntimeError("one pass was driven by both p.backward and p.record; use one of them")
        if any(weight != other for other in self._waiting):
            raise ValueError(messages.UNEQUAL_WAITING)
        if self._replicas.synchronised():
            self._take(weight)
            self._waiting = []
        else:
            self._waiting.append(weight)
        self._count(loss, weight)

    @property
    def is_waiting(self) -> bool:
        """Whether the gradient in `.grad` is still this rank's own."""
        return not self._replicas.synchronised()

    def evaluation(self, repeatable: bool) -> Evaluation:
        """Close the pass: the weighted means over its calls, without the scaler's factor."""
        self._open = False
        if self._weight and self.is_waiting:
            raise ValueError(messages.NEVER_SYNCHRONISED)
        if self._accumulating:
            self._take(1.0)
        gradient = self._taken if self._taken is not None else []
        self._taken = None
        if not V.present(gradient):
            raise ValueError(messages.NO_GRADIENT)
        if self._weight != 1 or self._scaler is not None:
            V.scale_(gradient, self._factor())
        return Evaluation(self._loss if self._weight == 1 else self._loss / self._weight, gradient, repeatable)

    def _check(self, loss: object, weight: float) -> None:
        if not self._open:
            raise RuntimeError("this pass is over; call backward or record inside the loop over passes")
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"the loss of a pass must be a tensor with one element, got {loss!r}")
        if not (isfinite(weight) and weight > 0):
            raise ValueError(f"weight must be finite and above 0, got {weight!r}")

    def _count(self, loss: Tensor, weight: float) -> None:
        scaled = loss.detach().reshape(()) if weight == 1 else loss.detach().reshape(()) * weight
        self._loss = scaled if self._weight == 0 else self._loss + scaled
        self._weight += weight

    def _take(self, weight: float) -> None:
        """Move `.grad` into this pass, so that a closure that zeroes gradients does not wipe the micro-batches before it."""
        gradient: Vector = [p.grad for p in self._parameters]
        if any(g.layout != torch.strided for g in V.present(gradient)):
            raise ValueError(messages.SPARSE)
        for p in self._parameters:
            p.grad = None
        if weight != 1:
            V.scale_(gradient, weight)
        self._taken = gradient if self._taken is None else V.add(self._taken, gradient)

    def _factor(self) -> Tensor | float:
        if self._scaler is None:
            return 1 / self._weight
        return 1 / (scale_of(self._scaler, self._parameters) * self._weight)


class Passes:
    """The passes of one step: iterate over it. As a context manager it also restores the weights on leaving the block."""

    def __init__(self, dialogue: Generator[Pass]) -> None:
        self._dialogue = dialogue

    def __iter__(self) -> Iterator[Pass]:
        return self._dialogue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._dialogue.close()


def scale_of(scaler: Any, parameters: list[Tensor]) -> Tensor:
    """The loss scale of a `torch.amp.GradScaler`, a 0-d tensor, without a host synchronisation."""
    return scaler.scale(torch.ones((), device=parameters[0].device))


def _explained(error: RuntimeError) -> RuntimeError:
    stale = "backward through the graph a second time" in str(error) or "modified by an inplace operation" in str(error)
    return RuntimeError(f"{messages.STALE_GRAPH}\n{error}") if stale else error
