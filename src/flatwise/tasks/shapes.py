"""What a model needs its task to look like."""

from __future__ import annotations

from flatwise.tasks.task import Task


def channels(model: str, task: Task, smallest: int) -> int:
    """The channels of the task's images, for a model that needs images.

    Raises:
        ValueError: the samples are no images [C, H, W], or smaller than `smallest` pixels.
    """
    shape = list(task.train_inputs.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(
            f"{model} needs images [C, H, W] of {smallest}x{smallest} or larger, but {task.name} has {shape}"
        )
    return shape[0]


def tokens(model: str, task: Task) -> int:
    """The length of the task's sequences, for a model that predicts a class for each token.

    Raises:
        ValueError: the samples are no sequences of whole numbers with a target each.
    """
    if task.train_targets.ndim != 2 or task.train_inputs.is_floating_point():
        shape = list(task.train_inputs.shape[1:])
        raise ValueError(
            f"{model} needs sequences of tokens with a target each, as tinyshakespeare has them, but {task.name} has {shape}"
        )
    return task.train_inputs.shape[1]


def one_target_each(model: str, task: Task) -> None:
    """Raise ValueError for a task with a target for every token, of which this model knows nothing."""
    if task.train_targets.ndim != 1:
        raise ValueError(
            f"{model} gives one class to a sample, but {task.name} has one for every token: try transformer"
        )
