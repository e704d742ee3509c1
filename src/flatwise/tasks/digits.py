"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, 0 to 16, that come with the installation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatwise.tasks.augment import CropAndFlip
from flatwise.tasks.sampling import permutation
from flatwise.tasks.source import Source, Split

NUM_TRAIN = 1000


def digits(seed: int) -> Source:
    """1,000 images for training and 797 for testing, permuted by the seed; pixels / 8 - 1, so within [-1, 1]."""
    pixels, targets = _load()
    everything = Split(targets, lambda indices: pixels[indices] / 8 - 1)
    order = permutation(len(everything), seed, "split")
    notes = f"scikit-learn's digits, pixels / 8 - 1, split 1,000 / 797 with seed {seed}."
    train, test = everything.take(order[:NUM_TRAIN]), everything.take(order[NUM_TRAIN:])
    return Source(train, test, 10, notes, augment=CropAndFlip(flip=False))


def digits_full() -> Source:
    """All 1,797 images for training, pixels / 16 with the mean of every pixel removed; the test images are the same ones.

    For full-batch experiments about the training loss alone: the test numbers of this task say nothing new.
    """
    pixels, targets = _load()
    centred = pixels / 16 - (pixels / 16).mean(0)
    everything = Split(targets, lambda indices: centred[indices])
    notes = "scikit-learn's digits, pixels / 16, mean of every pixel removed; all 1,797 train, and the test images are the same."
    return Source(everything, everything, 10, notes, augment=CropAndFlip(flip=False))


def _load() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 1, 8, 8] float32, 0 to 16, and targets [1797] int64."""
    from sklearn.datasets import load_digits  # a second of import that the other data sets need not pay

    bunch: Any = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1), torch.tensor(bunch.target, dtype=torch.int64)
