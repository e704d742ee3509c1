"""One call per batch, for those who would rather write neither a closure nor a loop over passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import ceil, isfinite
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from flatwise.methods.checks import positive_integer
from flatwise.optim import checks
from flatwise.optim.imitations import real
from flatwise.optim.sharpness_aware import SharpnessAware

TrainStep: TypeAlias = Callable[..., Tensor]


def two_pass(
    optimizer: SharpnessAware,
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    *,
    micro_batches: int = 1,
    autocast: AbstractContextManager[Any] | None = None,
    scaler: Any = None,
    max_norm: float | None = None,
) -> TrainStep:
    """A function that takes one whole step on a batch: every pass of the method (two of SAM's), clipping, the update.

        train_step = fw.two_pass(optimizer, model, torch.nn.functional.cross_entropy)
        for inputs, targets in loader:
            loss = train_step(inputs, targets)

    Models that take several inputs get them as a tuple or as a mapping: `model(*inputs)`, `model(**inputs)`. Models that
    return their own loss need no targets: `two_pass(optimizer, model, lambda output: output.loss)(batch)`.

    Args:
        optimizer: the `SharpnessAware`, with any method.
        model: what maps inputs to outputs, wrapped in DistributedDataParallel or not.
        loss_fn: `loss_fn(model(inputs), *targets)` is the *mean* loss over the batch.
        micro_batches: into how many pieces each batch is cut along the first dimension, to save memory. The step is that of
            the whole batch, also where the last piece is smaller (but for what depends on the batch, such as BatchNorm). Over
            replicas the batches count alike.
        autocast: a `torch.autocast(...)`, entered around every forward.
        scaler: a `torch.amp.GradScaler`, for float16; it is stepped and updated.
        max_norm: > 0; the norm to which the direction is clipped before the update.

    Returns:
        A function `(inputs, *targets) -> loss`: the loss as `SharpnessAware.step` returns it, at the weights or where a
        method never evaluates there at its first displaced place; 0-d and detached.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the message says what to pass.
    """
    _check(optimizer, model, loss_fn, max_norm)
    positive_integer("micro_batches", micro_batches)
    scaler = checks.scaler(scaler)

    def train_step(inputs: Any, *targets: Any) -> Tensor:
        pieces = _pieces((inputs, targets), micro_batches)
        for p in optimizer.passes(scaler):
            for i, ((some_inputs, some_targets), share) in enumerate(pieces):
                with _unsynchronised(model, more=i + 1 < len(pieces)):
                    with autocast or nullcontext():
                        loss = loss_fn(_output(model, some_inputs), *some_targets)
                    p.backward(loss, weight=share)
        loss: Tensor = real(optimizer)._concluded().loss
        _update(optimizer, scaler, max_norm)
        return loss

    return train_step


def _update(optimizer: SharpnessAware, scaler: Any, max_norm: float | None) -> None:
    if max_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _output(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**cast(Mapping[str, Any], inputs))
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _unsynchronised(model: Any, *, more: bool) -> AbstractContextManager[None]:
    """Replicas average their gradients once, at the last micro-batch."""
    return model.no_sync() if more and hasattr(model, "no_sync") else nullcontext()


# --- micro-batches ----------------------------------------------------------------------------------------------------


def _pieces(batch: Any, count: int) -> list[tuple[Any, float]]:
    """The batch in pieces, each with its share of the samples."""
    if count == 1:
        return [(batch, 1.0)]
    sizes = {t.shape[0] for t in _tensors(batch)}
    if len(sizes) != 1:
        raise ValueError(f"micro_batches cuts tensors of one leading size, this batch has {sorted(sizes)}")
    total = sizes.pop()
    length = max(ceil(total / count), 1)
    return [(_cut(batch, i, i + length), min(length, total - i) / total) for i in range(0, total, length)]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor) and batch.ndim:
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _cut(batch: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop`; what is no tensor with a leading size belongs to every piece."""
    if isinstance(batch, Tensor) and batch.ndim:
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {name: _cut(part, start, stop) for name, part in batch.items()}
    return [_cut(part, start, stop) for part in batch] if isinstance(batch, tuple | list) else batch


# --- what cannot be right ---------------------------------------------------------------------------------------------


def _check(optimizer: object, model: object, loss_fn: object, max_norm: float | None) -> None:
    if not isinstance(optimizer, SharpnessAware):
        raise TypeError(f"optimizer must be a SharpnessAware, got {type(optimizer).__name__}; wrap it in one first")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of (model(inputs), *targets), got {loss_fn!r}")
    if max_norm is not None and not (isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"max_norm must be finite and above 0, got {max_norm!r}")
