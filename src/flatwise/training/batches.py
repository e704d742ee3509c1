"""The order of the training data: a pure function of the seed and the epoch, so that a resumed run meets the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from flatwise.tasks import Task

CHUNK = 2048
"""Samples that pass through the model at once; larger batches are accumulated."""


class Batches:
    """The batches of a run, by step.

    Args:
        task: the data.
        size: samples per batch; 0, or as many as there are, is the full batch, in its own order.
        seed: of the order and of the augmentation.
    """

    def __init__(self, task: Task, size: int, seed: int) -> None:
        self._task = task
        self._seed = seed
        self.num_samples = len(task.train_inputs)
        self.is_full = size == 0 or size >= self.num_samples
        self.size = self.num_samples if self.is_full else size
        self.per_epoch = math.ceil(self.num_samples / self.size)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of a step, augmented where the task says how."""
        inputs, targets = self._plain(step)
        if self._task.augment is None:
            return inputs, targets
        generator = torch.Generator().manual_seed(_mixed(self._seed, step) + 1)
        return self._task.augment(inputs, generator), targets

    def smallest_piece(self, parts: int | None) -> int:
        """The fewest samples that pass through the model at once, where every batch is split into so many parts."""
        last = self.num_samples - (self.per_epoch - 1) * self.size
        wholes = [size // min(parts or 1, size) for size in (self.size, last)]
        return min(size % CHUNK or min(size, CHUNK) for whole in wholes for size in (whole, whole + bool(parts)))

    def _plain(self, step: int) -> tuple[Tensor, Tensor]:
        if self.is_full:
            return self._task.train_inputs, self._task.train_targets
        epoch, index = divmod(step, self.per_epoch)
        chosen = _order(self.num_samples, self._seed, epoch)[index * self.size : (index + 1) * self.size]
        return self._task.train_inputs[chosen], self._task.train_targets[chosen]


def chunks(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in pieces that fit into memory."""
    yield from zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True)


def part_of(inputs: Tensor, targets: Tensor, parts: int | None, part: int) -> tuple[Tensor, Tensor]:
    """One of so many parts of a batch, which differ by one sample at most; all of it where there are none."""
    if parts is None:
        return inputs, targets
    return inputs.tensor_split(parts)[part], targets.tensor_split(parts)[part]


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(_mixed(seed, epoch)))


def _mixed(seed: int, count: int) -> int:
    """A seed of its own for every (seed, count)."""
    return (2 * (seed * 1_000_003 + count)) % 2**62
