"""What cannot be right, said in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from flatwise.modules import Mode


def check_arguments(model: Any, loss_fn: Any, mode: Any, weight: Any) -> None:
    """Refuse arguments of the wrong kind."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise TypeError(
            "FullyShardedDataParallel flattens the parameters, so their vectors have no shapes; use fully_shard (FSDP2)"
        )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of (model, batch), got {type(loss_fn).__name__}")
    _refuse_criterion(loss_fn)
    if mode not in get_args(Mode):
        raise ValueError(f'mode must be "current", "eval" or "train", got {mode!r}')
    if weight is not None and not callable(weight):
        raise TypeError(f"weight must be a function of the batch, got {type(weight).__name__}")


def _refuse_criterion(loss_fn: Any) -> None:
    """Torch's own losses take outputs and targets. (Not a user's subclass of one, which may take what it likes.)"""
    if getattr(loss_fn, "__module__", None) in ("torch.nn.modules.loss", "torch.nn.functional"):
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise TypeError(
            f"loss_fn is called with (model, batch), but {name} takes outputs and targets; wrap it: "
            "lambda model, batch: loss_fn(model(batch[0]), batch[1])"
        )


def check_limits(micro_batch: Any, max_memory: Any) -> None:
    """Refuse limits out of their range."""
    if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
        raise ValueError(f"micro_batch must be an integer >= 1, got {micro_batch!r}")
    if max_memory is not None and not max_memory > 0:
        raise ValueError(f"max_memory must be a number of bytes > 0, got {max_memory!r}")
    if micro_batch is not None and max_memory is not None:
        raise ValueError("give micro_batch or max_memory, not both: the second chooses the first")


def check_subset(count: Any) -> None:
    """Refuse what is no number of samples."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"count must be an integer, the number of samples, got {count!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def differentiable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad; there must be some, and they must be real."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter that requires grad, so there is nothing to differentiate")
    if any(p.is_complex() for p in parameters):
        raise ValueError("complex parameters are not supported; hold them as torch.view_as_real(...)")
    return parameters


def chosen(parameters: Sequence[nn.Parameter], some: Collection[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the parameters that are among some, in their order; there must be one."""
    found = [p for p in parameters if p in some]
    if not found:
        raise ValueError("none of the chosen parameters requires grad, so there is nothing to differentiate")
    return found


def checked_weight(weight: Any) -> float:
    """The weight of a batch as a number."""
    number = float(weight)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"the weight of a batch must be a finite number >= 0, got {number}")
    return number


def checked_loss(loss: Any) -> Tensor:
    """The loss as a 0-d tensor."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return the mean loss as a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"loss_fn must return one real number, got {loss.dtype} of shape {tuple(loss.shape)}; take the mean"
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError("the loss does not depend on any parameter that requires grad; was it detached?")
    return loss.reshape(())


def explain(error: Exception, data: Any) -> None:
    """Add a note to what a loss raised where every batch is a tensor: perhaps the data is one batch, not a list of them."""
    if isinstance(data, (tuple, list)) and all(isinstance(batch, Tensor) for batch in cast("list[object]", data)):
        error.add_note(
            "Each entry of the data is a batch, here a single tensor. If all of it is one batch, pass [data]"
        )


def fitting(vector: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The vector with zeros for None, on the devices of the parameters."""
    if len(vector) != len(parameters):
        raise ValueError(
            f"the vector has {len(vector)} entries, the model {len(parameters)} parameters that require grad"
        )
    for i, (v, p) in enumerate(zip(vector, parameters, strict=True)):
        if v is not None and v.shape != p.shape:
            raise ValueError(f"entry {i} of the vector has shape {tuple(v.shape)}, its parameter {tuple(p.shape)}")
    return [
        torch.zeros_like(p, requires_grad=False) if v is None else v.detach().to(p.device)
        for v, p in zip(vector, parameters, strict=True)
    ]
