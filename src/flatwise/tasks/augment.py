"""Augmentation of images: a pure function of a batch and a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop of the zero-padded image, and a horizontal flip half of the time.

    The padding is an eighth of the shorter side: 4 pixels for 32x32, as in the ResNet paper (arXiv 1512.03385, section 4.2). It
    happens on standardised images, so the border has the mean color. Images in which left and right differ, as digits do,
    are cropped only (`flip=False`).
    """

    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images [B, C, H, W]; every image has its own crop and flip, drawn from `generator` (on the CPU)."""
        count, channels, height, width = images.shape
        padding = max(1, min(height, width) // 8)
        rows = _window(count, height, padding, generator)
        columns = _window(count, width, padding, generator)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (padding, padding, padding, padding))
        # One gather over flattened pixels: indexing by image, channel, row and column takes seven times as long.
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1).to(images.device)
        return padded.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)


def _window(count: int, length: int, padding: int, generator: torch.Generator) -> Tensor:
    """For each image the indices [count, length] of a window that starts at random in the padded side."""
    start = torch.randint(2 * padding + 1, (count, 1), generator=generator)
    return start + torch.arange(length)
