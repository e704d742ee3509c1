"""What a training loop meets: the passes of one step, and the single pass."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, Self

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods import At, Evaluation
from flatwise.optim import checks, messages
from flatwise.optim.replicas import Replicas
from flatwise.vectors import Vector


class Pass:
    """One evaluation of the loss, driven by the user's own forward.

    Attributes:
        at_weights: whether the weights are the undisplaced ones.
        is_probe: whether this evaluation only measures (evaluation mode; its loss is not part of training).
        counts: whether to update metrics: in one evaluation of each part of a step's data, the first that is no probe.
        part: the part of the batch to evaluate, counted from 0, when `passes(parts=...)` was asked for; else 0.
    """

    def __init__(
        self, at: At, counts: bool, part: int, parameters: list[Tensor], replicas: Replicas, scaler: Any
    ) -> None:
        self.at_weights = at.vector is None
        self._selection = at.selection
        self.is_probe = at.probe
        self.counts = counts
        self.part = part
        self._parameters = parameters
        self._replicas = replicas
        self._scaler = scaler
        self._loss = torch.zeros(())
        self._taken: Vector | None = None
        self._weight = 0.0
        self._accumulating = False
        self._waiting: list[float] = []
        self._recorded: list[float] = []
        self._open = True
        self._left: object = None
        self.interfered = False
        self.weight: Tensor | float = 0.0
        self.agreed: Tensor | None = None

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Run backward on the mean loss of one micro-batch; call it once per micro-batch.

        The pass's gradient is the weighted *mean* over its calls, unlike the sum that torch accumulates.

        Args:
            loss: a tensor with one element, from a forward run in this pass.
            weight: >= 0, for micro-batches of unequal size, also over replicas: a rank without data runs any batch with 0.
        """
        self._check(loss, weight)
        checks.not_scaled(loss, self._scaler)
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        with explained():
            (scaled if weight == 1 else scaled * weight).backward()
        self._count(loss, weight)
        self._accumulating = True
        if not self._replicas.many:  # DDP accumulates in its buckets
            self._own()
        self._left = self._state_of_gradients()

    def chosen(self, losses: Tensor) -> Tensor:
        """Those of a micro-batch's losses that count in this pass: all of them, but for methods that select samples (ESAM).

            p.backward(p.chosen(losses).mean())

        Args:
            losses: [B], the loss of each sample, as of `reduction="none"`; the same samples in the same order in every pass.
        """
        return losses if self._selection is None else self._selection.of(losses)

    def record(self, loss: Tensor, weight: float = 1.0) -> None:
        """Take note of a micro-batch on which something else ran backward (Accelerate, Fabric, a closure).

        Its gradient is found in `.grad`: of the loss as it is, without the weight, and times the scale where there is a scaler.
        Micro-batches under `no_sync` wait for the one that synchronises, and must have the same weight.

        Args:
            loss: its mean loss.
            weight: >= 0, for micro-batches of unequal size; the same on all replicas, whose gradients are averaged already.
        """
        self._check(loss, weight)
        if self._accumulating:
            raise RuntimeError("one pass was driven by both p.backward and p.record; use one of them")
        if any(weight != other for other in self._waiting):
            raise ValueError(messages.UNEQUAL_WAITING)
        if self._is_kept_back():
            self._waiting.append(weight)
        else:
            self._take(weight)
            self._waiting = []
            self._recorded.append(weight)
        self._count(loss, weight)

    @property
    def is_waiting(self) -> bool:
        """Whether the gradient in `.grad` is still this rank's own."""
        return not self._replicas.synchronised()

    def _is_kept_back(self) -> bool:
        """Whether this micro-batch's gradient waits for the next one: in `.grad` under DDP, out of sight under FSDP2."""
        out_of_sight = self._replicas.shards and all(p.grad is None for p in self._parameters)
        return out_of_sight or not self._replicas.synchronised()

    def evaluation(self, repeatable: bool) -> Evaluation:
        """Close the pass: the weighted means over its calls and over replicas, without the scaler's factor."""
        self._open = False
        if self._weight and self.is_waiting:
            raise ValueError(messages.NEVER_SYNCHRONISED)
        if self._accumulating:
            self.interfered = self._state_of_gradients() != self._left
            self._take(1.0)
        gradient = self._taken if self._taken is not None else []
        self._taken = None
        if not V.present(gradient):
            raise ValueError(self._without_gradient())
        loss, self.weight, repeated = self._shared(gradient, repeatable)
        inverse = self._inverse()
        if isinstance(inverse, Tensor) or inverse != 1 or self._scaler is not None:
            V.scale_(gradient, self._unscaled(inverse))
        return Evaluation(loss * inverse, gradient, repeated)

    def _shared(self, gradient: Vector, repeatable: bool) -> tuple[Tensor, Tensor | float, Tensor | bool]:
        """The sums over the replicas that evaluate together, as means. The model has averaged the weighted gradients likewise."""
        if not self._replicas.share(self.is_probe):
            if not (self._weight or self._replicas.apart):
                raise ValueError(messages.NO_WEIGHT)
            return self._loss, self._weight, repeatable
        if self.is_probe:
            self._replicas.average_probe_(gradient, self._parameters)
        pattern = sum(place * weight for place, weight in enumerate(self._recorded, 1))
        loss, weight, repeated, mean, square = self._replicas.mean(
            self._loss, self._weight, repeatable, pattern, pattern**2, everywhere=self.is_probe
        )
        self.agreed = square - mean**2 <= 1e-9 * square
        return loss.to(torch.promote_types(self._loss.dtype, torch.float32)), weight, repeated == 1

    def _inverse(self) -> Tensor | float:
        """One over the weight of the pass; 0 where a replica has a dialogue of its own and is without data."""
        if not isinstance(self.weight, Tensor):
            return 1 / self.weight if self.weight else 0.0
        return V.reciprocal(self.weight) if self._replicas.apart else 1 / self.weight

    def _without_gradient(self) -> str:
        if self._waiting:
            return messages.NEVER_SYNCHRONISED
        if self._weight:
            return messages.NO_GRADIENT
        if any(p.grad is not None for p in self._parameters):
            return messages.NOT_RECORDED
        return messages.NO_GRADIENT if self.counts else messages.NO_GRADIENT + messages.USED_UP

    def _check(self, loss: object, weight: float) -> None:
        if not self._open:
            raise RuntimeError("this pass is over; call backward or record inside the loop over passes")
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {list(loss.shape)}: take its mean" if isinstance(loss, Tensor) else repr(loss)
            raise TypeError(f"the loss of a pass must be a tensor with one element, got {got}")
        if not (isfinite(weight) and weight >= 0):
            raise ValueError(f"weight must be finite and not below 0, got {weight!r}")

    def _count(self, loss: Tensor, weight: float) -> None:
        scaled = loss.detach().reshape(()) * weight  # never the loss itself, which a replayed CUDA graph overwrites
        self._loss = scaled if self._weight == 0 else self._loss + scaled
        self._weight += weight

    def _state_of_gradients(self) -> object:
        """What changes when somebody writes into all gradients, as clipping does; told by one of them."""
        first = next((p.grad for p in self._parameters if p.grad is not None), None)
        return None if first is None else (id(first), first._version)

    def _own(self) -> None:
        """Let the next micro-batch be added to a gradient that its backward does not overwrite first."""
        gradient: Vector = [p.grad for p in self._parameters]
        for p, known, owned in zip(self._parameters, gradient, V.owned(gradient), strict=True):
            if owned is not known:
                p.grad = owned

    def _take(self, weight: float) -> None:
        """Move `.grad` into this pass, so that a closure that zeroes gradients does not wipe the micro-batches before it."""
        gradient: Vector = [p.grad for p in self._parameters]
        if any(g.layout != torch.strided for g in V.present(gradient)):
            raise ValueError(messages.SPARSE)
        for p in self._parameters:
            p.grad = None
        gradient = V.owned(V.laid_out_like(gradient, self._parameters))
        if weight != 1:
            V.scale_(gradient, weight)
        self._taken = gradient if self._taken is None else V.add(self._taken, gradient)

    def _unscaled(self, factor: Tensor | float) -> Tensor | float:
        return factor if self._scaler is None else factor / scale_of(self._scaler, self._parameters)


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


@contextmanager
def explained() -> Generator[None]:
    """Around a backward: put a sentence before those errors of torch that do not name their cause."""
    try:
        yield
    except RuntimeError as error:
        if cause := _cause(str(error)):
            raise RuntimeError(f"{cause}\n{error}") from error
        raise


def _cause(error: str) -> str | None:
    if "expect_autograd_hooks_" in error:
        return messages.STATIC_GRAPH
    stale = "backward through the graph a second time" in error or "modified by an inplace operation" in error
    return messages.STALE_GRAPH if stale else None
