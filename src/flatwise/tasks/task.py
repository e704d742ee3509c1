"""A task: images or vectors to classify, split into training and test data, ready to be fed to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Task:
    """Training and test data in memory. Checked on construction: a task that exists can be trained on.

    Attributes:
        name: What it is called in tables and reports.
        train_inputs: [N, ...] float32, standardised; images are [N, C, H, W].
        train_targets: [N] int64, in 0 .. num_classes - 1.
        test_inputs: [M, ...] float32, like the training inputs.
        test_targets: [M] int64.
        num_classes: The number of classes, at least 2.
        augment: None, or a pure function (inputs [B, ...], generator) -> inputs [B, ...] for training batches.
        notes: How the data was made, in a sentence or two that a report can show.

    Raises:
        TypeError: A tensor is missing or has the wrong dtype.
        ValueError: Shapes do not fit, targets are out of range, inputs are not finite, or a split is empty.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    augment: Augment | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        splits = [("train", self.train_inputs, self.train_targets), ("test", self.test_inputs, self.test_targets)]
        for split in splits:
            self._check_form(*split)
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            shapes = f"{list(self.train_inputs.shape[1:])} and {list(self.test_inputs.shape[1:])}"
            raise ValueError(f"training and test samples of {self.name} must have one shape, but have {shapes}")
        if self.num_classes < 2:
            raise ValueError(f"{self.name} has {self.num_classes} class(es); there must be at least 2 to tell apart")
        for split in splits:
            self._check_values(*split)

    def _check_form(self, split: str, inputs: object, targets: object) -> None:
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            kinds = f"{type(inputs).__name__} and {type(targets).__name__}"
            raise TypeError(f"{split}_inputs and {split}_targets of {self.name} must be torch tensors, not {kinds}")
        if targets.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(targets) or len(inputs) == 0:
            raise ValueError(
                f"the {split} split of {self.name} must be inputs [N, ...] and targets [N] with N > 0, "
                f"but they have shapes {list(inputs.shape)} and {list(targets.shape)}"
            )
        for what, tensor, dtype in (("inputs", inputs, torch.float32), ("targets", targets, torch.int64)):
            if tensor.dtype != dtype:
                raise TypeError(f"{split}_{what} of {self.name} must have dtype {dtype}, not {tensor.dtype}")

    def _check_values(self, split: str, inputs: Tensor, targets: Tensor) -> None:
        if targets.min() < 0 or targets.max() >= self.num_classes:
            found = f"{int(targets.min())} .. {int(targets.max())}"
            raise ValueError(f"{split}_targets of {self.name} must lie in 0 .. {self.num_classes - 1}, not {found}")
        if not torch.isfinite(inputs).all():
            raise ValueError(f"{split}_inputs of {self.name} hold NaN or infinite values")
