"""A task: images, vectors or tokens to classify, split into training and test data, ready to be fed to a model."""

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
        train_inputs: [N, ...] float32, standardised; images are [N, C, H, W]. Tokens are [N, T] int64.
        train_targets: [N] int64, in 0 .. num_classes - 1; or [N, T], one for each of the T tokens of a sample.
        test_inputs: [M, ...], like the training inputs.
        test_targets: [M] or [M, T], like the training targets.
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
        if self.train_targets.shape[1:] != self.test_targets.shape[1:]:
            raise ValueError(
                f"training and test targets of {self.name} must both be [N], or both [N, T] with the same T"
            )
        if self.num_classes < 2:
            raise ValueError(f"{self.name} has {self.num_classes} class(es); there must be at least 2 to tell apart")
        for split in splits:
            self._check_values(*split)

    def _check_form(self, split: str, inputs: object, targets: object) -> None:
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            kinds = f"{type(inputs).__name__} and {type(targets).__name__}"
            raise TypeError(f"{split}_inputs and {split}_targets of {self.name} must be torch tensors, not {kinds}")
        if (
            not 1 <= targets.ndim <= 2
            or inputs.ndim < 2
            or 0 in inputs.shape
            or _leading(inputs, targets) != targets.shape
        ):
            raise ValueError(
                f"the {split} split of {self.name} must be inputs [N, ...] and targets [N], or inputs [N, T, ...] and targets "
                f"[N, T], with N > 0, but they have shapes {list(inputs.shape)} and {list(targets.shape)}"
            )
        # Whole numbers are tokens where each has a target; elsewhere they are pixels that somebody forgot to scale.
        tokens = targets.ndim == 2 and inputs.dtype == torch.int64
        for what, tensor, dtype in (("inputs", inputs, torch.float32), ("targets", targets, torch.int64)):
            if tensor.dtype != dtype and not tokens:
                raise TypeError(f"{split}_{what} of {self.name} must have dtype {dtype}, not {tensor.dtype}")

    def _check_values(self, split: str, inputs: Tensor, targets: Tensor) -> None:
        if targets.min() < 0 or targets.max() >= self.num_classes:
            found = f"{int(targets.min())} .. {int(targets.max())}"
            raise ValueError(f"{split}_targets of {self.name} must lie in 0 .. {self.num_classes - 1}, not {found}")
        if not torch.isfinite(inputs).all():
            raise ValueError(f"{split}_inputs of {self.name} hold NaN or infinite values")


def _leading(inputs: Tensor, targets: Tensor) -> torch.Size:
    """The sizes of the inputs that the targets must have too."""
    return inputs.shape[: targets.ndim]
