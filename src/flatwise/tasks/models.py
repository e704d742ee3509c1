"""Models by name, built for a task and seeded; the global random state is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatwise.tasks.names import check_model_name
from flatwise.tasks.sampling import globally_seeded
from flatwise.tasks.task import Task
from flatwise.tasks.users import check_call, resolve


def build_model(name: str, task: Task, seed: int, **options: Any) -> nn.Module:
    """Build a model that maps the task's inputs [B, ...] to logits [B, num_classes], float32 on the CPU, in training mode.

    Args:
        name: One of `model_names()`: mlp, cnn6, resnet18, or `module:function` for function(task) or function().
        task: Gives the shape of the inputs and the number of classes.
        seed: The seed of the initial weights.
        options: What the model's function takes besides: `widths` and `init` for mlp, `width` for cnn6.

    Raises:
        ValueError: An unknown name (the nearest is named), inputs or an option that do not fit, wrong output of a user's model.
        TypeError: An option that the model does not have, or a user's function that does not return a module.
    """
    check_model_name(name)
    function = _MODELS[name] if name in _MODELS else resolve(name)
    arguments = (task,) if _takes_task(function) else ()
    check_call(name, function, *arguments, **options)
    with globally_seeded(seed):
        model = function(*arguments, **options)
        if name not in _MODELS:
            _check_model(name, model, task)
    return model


def mlp(
    task: Task, widths: Sequence[int] = (128, 128), init: Literal["default", "glorot"] = "default"
) -> nn.Sequential:
    """Fully connected with ReLU; inputs are flattened.

    `init="glorot"` draws the weights from Glorot's normal distribution and sets the biases to zero; "default" is torch's own.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must name the size of every hidden layer, like (128, 128), not {widths}")
    if init not in ("default", "glorot"):
        raise ValueError(f"init must be 'default' or 'glorot', not {init!r}")
    sizes = [task.train_inputs[0].numel(), *widths]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], task.num_classes))
    return model.apply(_glorot) if init == "glorot" else model


def cnn6(task: Task, width: float = 1.0) -> nn.Sequential:
    """Six 3x3 convolutions with BatchNorm and ReLU, 16-16-32-32-64-64 channels times `width`.

    The size is halved after the second and the fourth; the mean over what is left goes into one linear layer.
    """
    if not width > 0:
        raise ValueError(f"width must be a positive factor on the number of channels, not {width}")
    sizes = [_channels("cnn6", task, smallest=8), *(max(1, round(width * c)) for c in (16, 16, 32, 32, 64, 64))]
    one, two, three, four, five, six = (_convolution(a, b) for a, b in pairwise(sizes))
    features = [
        one,
        two,
        nn.MaxPool2d(2),
        three,
        four,
        nn.MaxPool2d(2),
        five,
        six,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*features, nn.Linear(sizes[-1], task.num_classes))


def resnet18(task: Task) -> nn.Module:
    """torchvision's ResNet-18, untrained, with the stem for small images: a 3x3 convolution of stride 1, no max-pool."""
    from torchvision.models import resnet18 as resnet  # a second of import that the other models need not pay

    channels = _channels("resnet18", task, smallest=8)
    model: Any = resnet(weights=None, num_classes=task.num_classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


_MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn6": cnn6, "resnet18": resnet18}


def _convolution(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def _channels(model: str, task: Task, smallest: int) -> int:
    shape = list(task.train_inputs.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(
            f"{model} needs images [C, H, W] of {smallest}x{smallest} or larger, but {task.name} has {shape}"
        )
    return shape[0]


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
    output = deepcopy(model).eval()(task.train_inputs[:2])
    samples = min(2, len(task.train_inputs))
    if not isinstance(output, Tensor) or output.shape != (samples, task.num_classes):
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{name!r} must map {samples} samples to [{samples}, {task.num_classes}] logits, but gives {got}"
        )
