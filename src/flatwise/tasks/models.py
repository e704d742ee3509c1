"""Models by name, built for a task and seeded; the global random state is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatwise.tasks.convolutions import cnn6, cnn_ln, glorot
from flatwise.tasks.names import check_model_name, sized
from flatwise.tasks.residual import resnet18, resnet50, wide_resnet
from flatwise.tasks.sampling import globally_seeded
from flatwise.tasks.shapes import one_target_each
from flatwise.tasks.task import Task
from flatwise.tasks.transformers import sized_transformer, transformer
from flatwise.tasks.users import check_call, resolve, speaking_of
from flatwise.tasks.vit import small_vit, vit_b_16


def build_model(name: str, task: Task, seed: int, **options: Any) -> nn.Module:
    """Build a model that maps the task's inputs [B, ...] to logits, float32 on the CPU, in training mode.

    The logits are [B, num_classes], or [B, T, num_classes] for a task with targets [N, T].

    Args:
        name: One of `model_names()`, or `module:function` for function(task) or function().
        task: Gives the shape of the inputs and the number of classes.
        seed: The seed of the initial weights.
        options: What the model's function takes besides: `widths` and `init` for mlp, `width` for cnn6,
            `blocks` for cnn-ln, `pretrained` for vit-b-16.

    Raises:
        ValueError: An unknown name (the nearest is named), inputs or an option that do not fit,
            a user's model that fails or has a wrong output.
        TypeError: An option that the model does not have, or a user's function that does not return a module.
    """
    check_model_name(name)
    own = _own(name)
    function = own or resolve(name)
    arguments = (task,) if _takes_task(function) else ()
    check_call(name, function, *arguments, **options)
    with globally_seeded(seed):
        with nullcontext() if own else speaking_of(name):
            model = function(*arguments, **options)
        if own is None:
            _check_model(name, model, task)
    return model


def mlp(
    task: Task, widths: Sequence[int] = (128, 128), init: Literal["default", "glorot"] = "default"
) -> nn.Sequential:
    """Fully connected with ReLU; inputs are flattened.

    `init="glorot"` draws the weights from Glorot's normal distribution and sets the biases to zero; "default" is torch's own.
    """
    one_target_each("mlp", task)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must name the size of every hidden layer, like (128, 128), not {widths}")
    if init not in ("default", "glorot"):
        raise ValueError(f"init must be 'default' or 'glorot', not {init!r}")
    sizes = [task.train_inputs[0].numel(), *widths]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], task.num_classes))
    return model.apply(glorot) if init == "glorot" else model


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn6": cnn6,
    "cnn-ln": cnn_ln,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit-b-16": vit_b_16,
    "transformer": transformer,
}

_FAMILIES: dict[str, Callable[[Task, int, int], nn.Module]] = {
    "wrn": wide_resnet,
    "vit": small_vit,
    "transformer": sized_transformer,
}
"""Models with two numbers in their name."""


def _own(name: str) -> Callable[..., nn.Module] | None:
    """Our function of that name; None for a user's."""
    if name in _MODELS or (found := sized(name)) is None:
        return _MODELS.get(name)
    family, first, second = found
    return lambda task: _FAMILIES[family](task, first, second)


def _takes_task(function: Callable[..., Any]) -> bool:
    """Whether a function names `task`, or cannot be called without a first argument."""
    first = next(iter(signature(function).parameters.values()), None)
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return (
        first is not None and first.kind in by_position and (first.name == "task" or first.default is Parameter.empty)
    )


@torch.no_grad()
def _check_model(name: str, model: object, task: Task) -> None:
    """Try a copy of a user's model on two samples, so that a wrong output is reported here and not in the loss."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name!r} must return a torch.nn.Module, not {type(model).__name__}")
    with speaking_of(name):
        output = deepcopy(model).eval()(task.train_inputs[:2])
    targets = list(task.train_targets[:2].shape)
    if not isinstance(output, Tensor) or list(output.shape) != [*targets, task.num_classes]:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        wanted = [*targets, task.num_classes]
        raise ValueError(f"{name!r} must map {targets[0]} samples to {wanted} logits, but gives {got}")
