"""Functions that keep nothing for differentiation but their arguments, at any order: the loss of a language model in chunks.

The logits of a language model, tokens times vocabulary, are often its largest tensor. Activation checkpointing does not keep them
for the first derivative, but for the second one the graph of the recomputation stays, with logits in it. Here each derivative is
again a function that is recomputed when it is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Function = Callable[..., Any]


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, without keeping anything for its derivatives but the tensors: it is computed anew for each.

    Args:
        function: draws no random numbers, and depends on nothing but its arguments that is to be differentiated.
        tensors: its arguments. Those that require grad are differentiated.
    """
    (output,) = _Recomputed.apply(_Autocast(function, tensors[0].device), *tensors)
    return output


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    chunk: int = 1024,
    ignore_index: int = -100,
) -> Tensor:
    """The mean cross-entropy of the logits `hidden @ weight.T + bias`, of which only `chunk` rows exist at a time, at any order.

    Costs another forward of this layer for each order of differentiation.

    Args:
        hidden: the last hidden states, shape (..., width).
        weight: of the output layer, shape (vocabulary, width), such as `model.lm_head.weight`.
        targets: the right tokens, integers of shape (...). Shift them before, as language models predict the next token.
        bias: of the output layer, shape (vocabulary,), or None.
        chunk: how many rows of logits, >= 1.
        ignore_index: targets that do not count. If none counts the loss is NaN, as that of torch.

    Raises:
        ValueError: shapes that do not fit, or chunk < 1.
    """
    if chunk < 1 or hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} must be of shapes "
            f"(..., width), (vocabulary, width) and (...), and chunk at least 1, got {chunk}"
        )
    shared = (weight,) if bias is None else (weight, bias)
    rows, answers = hidden.reshape(-1, hidden.shape[-1]).split(chunk), targets.reshape(-1).split(chunk)
    sums = [recomputed(_Sum(ignore_index), h, t, *shared) for h, t in zip(rows, answers, strict=True)]
    return torch.stack(sums).sum() / (targets != ignore_index).sum()


class _Sum:
    """The summed cross-entropy of some rows, in at least float32."""

    def __init__(self, ignore_index: int) -> None:
        self._ignore = ignore_index

    def __call__(self, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cross_entropy(wide, targets, ignore_index=self._ignore, reduction="sum")


class _Recomputed(torch.autograd.Function):
    """A function from tensors to a tuple of tensors whose derivative is another `_Recomputed`."""

    @staticmethod
    def forward(ctx: Any, function: Function, *tensors: Tensor) -> Any:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Any:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        found = iter(_Recomputed.apply(_Derivative(ctx.function, needed), *tensors, *along))
        return None, *(next(found) if wanted else None for wanted in needed)


class _Derivative:
    """The derivative of a function along a vector, as a function of both: itself differentiable where gradients are on."""

    def __init__(self, function: Function, needed: Sequence[bool]) -> None:
        self._function = function
        self._needed = needed

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        again = torch.is_grad_enabled()
        count = len(self._needed)
        with torch.enable_grad():
            places = [_variable(t, again) if n else t for t, n in zip(inputs[:count], self._needed, strict=True)]
            outputs = self._function(*places)
            wanted = [t for t, n in zip(places, self._needed, strict=True) if n]
            return _gradient(outputs, wanted, inputs[count:], again)


def _gradient(
    outputs: Sequence[Tensor], wanted: list[Tensor], along: Sequence[Tensor], again: bool
) -> tuple[Tensor, ...]:
    curved = [(o, v) for o, v in zip(outputs, along, strict=True) if o.requires_grad]
    if not curved:
        return tuple(torch.zeros_like(t) for t in wanted)
    tops, directions = zip(*curved, strict=True)
    found: Any = torch.autograd.grad(tops, wanted, directions, create_graph=again, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True))


def _variable(tensor: Tensor, again: bool) -> Tensor:
    """Something to differentiate with respect to: the tensor itself where the result is to be differentiated again."""
    return tensor if again and tensor.requires_grad else tensor.detach().requires_grad_()


class _Autocast:
    """A function in the autocast state of now: the threads of the backward pass do not know it."""

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device.type
        self._dtype = torch.get_autocast_dtype(device.type)
        self._enabled = torch.is_autocast_enabled(device.type)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor]:
        # Casts are made with and without a graph here: kept, one without would be found where a gradient is wanted.
        with torch.autocast(self._device, self._dtype, self._enabled, cache_enabled=False):
            return (self._function(*tensors),)
