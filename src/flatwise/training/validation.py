"""A validation split: samples taken out of the training data, on which a practitioner chooses a hyper-parameter."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flatwise.tasks import Task
from flatwise.tasks.sampling import permutation

Batch = tuple[Tensor, Tensor]


def held_out(task: Task, share: float, seed: int) -> tuple[Task, Batch | None]:
    """The task with fewer training samples, in their order, and the inputs and targets that were held out; None for share 0.

    `round(share * N)` of the N training samples are drawn by the seed. Their labels stay as they are: label noise belongs to
    the training data, and whoever has only noisy labels has a noisy validation split too. The test data stays whole and clean.

    Raises:
        ValueError: nothing would be held out, or nothing left.
    """
    if not share:
        return task, None
    size, count = len(task.train_inputs), round(share * len(task.train_inputs))
    if not 0 < count < size:
        raise ValueError(
            f"validation {share} holds out {count} of {size} training samples; at least 1 must go and 1 stay"
        )
    order = permutation(size, seed, "validation")
    out, left = order[:count].sort().values, order[count:].sort().values
    rest = replace(
        task,
        train_inputs=task.train_inputs[left],
        train_targets=task.train_targets[left],
        notes=f"{task.notes} {count:,} of {size:,} training samples are held out for validation, drawn with seed {seed}.",
    )
    return rest, (task.train_inputs[out], task.train_targets[out])
