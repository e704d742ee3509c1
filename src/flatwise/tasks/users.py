"""What users bring along as `module:function`: found, called with what it accepts, and checked."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from flatwise.plugins import load
from flatwise.tasks.augment import CropAndFlip
from flatwise.tasks.sampling import globally_seeded
from flatwise.tasks.source import Source, Split
from flatwise.tasks.task import Task


def resolve(name: str) -> Callable[..., Any]:
    """The function behind `module:function`. The current folder counts as a place to import from.

    Raises:
        ValueError: There is no such module, or no such function in it.
        TypeError: It cannot be called.
    """
    function = load(name)
    if not callable(function):
        raise TypeError(f"{name!r} must be a function, not {type(function).__name__}")
    return function


def accepts(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function can be called with this keyword argument."""
    parameters = signature(function).parameters
    named = keyword in parameters and parameters[keyword].kind is not Parameter.POSITIONAL_ONLY
    return named or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())


def check_call(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """Raise TypeError, saying what flatwise calls it with, when a function does not take these arguments."""
    try:
        signature(function).bind(*arguments, **keywords)
    except TypeError as error:
        given = ", ".join(["task"] * len(arguments) + list(keywords)) or "nothing"
        raise TypeError(f"{name!r} is called with {given}, which does not fit its signature: {error}") from error


@contextmanager
def speaking_of(name: str) -> Generator[None]:
    """Errors of the user's own code in the body are one sentence with the function's name; Ctrl-C stays what it is.

    Raises:
        ValueError: the body failed, or tried to end the process.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(f"{name!r} failed ({reason}); --debug shows where") from error


def user_data(name: str, root: str | None, seed: int) -> Source:
    """Call `module:function` with those of `seed` and `root` that it names, and make a source of what it returns.

    It may return a `Task`, or a tuple (train_inputs, train_targets, test_inputs, test_targets) of tensors or arrays. While it
    runs, torch's global CPU generator is seeded by `seed`; afterwards it is as before.

    Raises:
        TypeError: It needs other arguments or returns something else.
        ValueError: it fails, `root` was given and it has no use for it, or the data does not fit together.
    """
    function = resolve(name)
    if root is not None and not accepts(function, "root"):
        raise ValueError(f"the data root {root} has no effect: {name!r} takes no argument 'root'")
    offered = {"seed": seed} | ({} if root is None else {"root": root})
    keywords = {key: value for key, value in offered.items() if accepts(function, key)}
    check_call(name, function, **keywords)
    with globally_seeded(seed), speaking_of(name):
        returned = function(**keywords)
    return _source(returned if isinstance(returned, Task) else _task(name, returned))


def _source(task: Task) -> Source:
    train = Split(task.train_targets, lambda indices: task.train_inputs[indices])
    test = Split(task.test_targets, lambda indices: task.test_inputs[indices])
    images = CropAndFlip() if task.train_inputs.ndim == 4 else None
    return Source(train, test, task.num_classes, task.notes, augment=task.augment or images)


def _task(name: str, returned: Any) -> Task:
    if not isinstance(returned, (tuple, list)) or len(returned) != 4:
        what = f"{len(returned)} things" if isinstance(returned, (tuple, list)) else type(returned).__name__
        wanted = "a flatwise.tasks.Task or (train_inputs, train_targets, test_inputs, test_targets)"
        raise TypeError(f"{name!r} must return {wanted}, not {what}")
    train_inputs, train_targets, test_inputs, test_targets = (_tensor(name, thing) for thing in returned)
    labels = torch.cat([train_targets.reshape(-1), test_targets.reshape(-1)])
    num_classes = int(labels.max()) + 1 if labels.numel() else 0
    return Task(name, train_inputs, train_targets, test_inputs, test_targets, num_classes, notes=f"Made by {name}.")


def _tensor(name: str, thing: Any) -> Tensor:
    """A tensor of the user's numbers: float32 where they are floats, int64 where they are integers."""
    try:
        tensor = torch.as_tensor(thing).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} returned something that is no tensor or array of numbers: {error}") from error
    return tensor.float() if tensor.is_floating_point() else tensor.long()
