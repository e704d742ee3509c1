"""Where a task comes from: two splits whose images are read only when, and only those that, are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatwise.tasks.task import Augment

Standardise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Split:
    """The targets [N] int64 of one split, and a function that reads the inputs at some indices [n] -> [n, ...] float32."""

    targets: Tensor
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Split:
        """The split of the samples at `indices`, in that order."""
        return Split(self.targets[indices], lambda places: self.read(indices[places]))

    def inputs(self) -> Tensor:
        """All inputs, read now."""
        return self.read(torch.arange(len(self)))


def as_they_are(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Leave the inputs as they were read."""
    return train, test


def by_known_moments(mean: Sequence[float], std: Sequence[float]) -> Standardise:
    """Subtract the mean and divide by the standard deviation of each channel, both published for the data set."""
    shift, scale = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    return lambda train, test: ((train - shift) / scale, (test - shift) / scale)


def by_pixel_means(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels from 0 to 255 / 256, less the mean of each over the training images; no division (arXiv 2309.12488's code)."""
    mean = train.mean(0)
    return (train - mean) * (255 / 256), (test - mean) * (255 / 256)


def by_measured_moments(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean and divide by the standard deviation of each channel, both measured on the training images."""
    std, mean = torch.std_mean(train, dim=(0, 2, 3), correction=0)
    # A channel that is the same everywhere has no scale of its own.
    return by_known_moments(mean.tolist(), [s if s > 0 else 1.0 for s in std.tolist()])(train, test)


@dataclass(frozen=True)
class Source:
    """Two splits and how they were made; what standardises their inputs, in words too; which augmentation suits them.

    `pixels` says that the splits are images with pixels from 0 to 1, which can be preprocessed in other ways.
    """

    train: Split
    test: Split
    num_classes: int
    notes: str
    standardise: Standardise = as_they_are
    standardised: str = ""
    augment: Augment | None = None
    pixels: bool = False

    def said(self) -> str:
        """How the data was made, in sentences."""
        return " ".join(filter(None, (self.notes, self.standardised)))
