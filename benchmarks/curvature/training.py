"""The trainings whose curvature is measured: CIFAR-10, cnn6, SGD with momentum and a cosine, everything seeded."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flatwise as fw
from flatwise.methods import Method
from flatwise.tasks import Task, build_model, load_data
from flatwise.training.batches import Batches

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Training:
    """What is trained and how.

    Attributes:
        model: by its name in flatwise.tasks.
        images: of the training set, drawn with the seed; cropped and flipped.
        epochs: trained for so many.
        planned: epochs over which the cosine goes from `lr` to 0. More than `epochs`: the weights still move at the end.
        batch: images per step.
        lr: at the beginning.
        measured: training images, not augmented, on which curvature is measured afterwards.
    """

    model: str = "cnn6"
    images: int = 10_000
    epochs: int = 3
    planned: int = 4
    batch: int = 128
    lr: float = 0.1
    measured: int = 512

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.epochs * self.per_epoch

    @property
    def per_epoch(self) -> int:
        return math.ceil(self.images / self.batch)

    def lr_at(self, step: int) -> float:
        return self.lr / 2 * (1 + math.cos(math.pi * step / (self.planned * self.per_epoch)))


TRAININGS = {"cnn6": Training(), "resnet18": Training("resnet18", images=2_000, measured=64)}
"""Those that the benchmark knows; ResNet-18 is a hundred times the work."""


@dataclass
class Step:
    """The state before a step, and what it takes to go on."""

    index: int
    model: nn.Module
    seconds: float
    """How long the step before took."""


def task_of(training: Training, seed: int) -> Task:
    """CIFAR-10 from the folder of the environment variable FLATWISE_DATA, as images or as torchvision keeps it, or downloaded."""
    images = Path(os.environ.get("FLATWISE_DATA", "")) / "cifar10"
    name = f"folder:{images}" if (images / "train").is_dir() else "cifar10"
    return load_data(name, seed=seed, subset=training.images, augment=True)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def optimizer_of(model: nn.Module, method: Method, lr: float) -> fw.SharpnessAware:
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return fw.SharpnessAware(base, method, model=model)


def take(optimizer: fw.SharpnessAware, model: nn.Module, batch: Batch) -> None:
    """One step."""
    for p in optimizer.passes():
        p.backward(loss_of(model, batch))
    optimizer.step()


def run(training: Training, task: Task, method: Method, seed: int) -> Iterator[Step]:
    """Train, and stop before each step and after the last one to be looked at."""
    model = build_model(training.model, task, seed=seed)
    optimizer = optimizer_of(model, method, training.lr)
    batches = Batches(task, training.batch, seed)
    seconds = 0.0
    for index in range(training.steps):
        yield Step(index, model, seconds)
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = training.lr_at(index)
        take(optimizer, model, batches.at(index))
        seconds = time.perf_counter() - start
    yield Step(training.steps, model, seconds)


def blank(training: Training, batch: Batch) -> nn.Module:
    """The model without its training, for a state dict to be loaded into."""
    return build_model(training.model, Task("probe", *batch, *batch, 10), seed=0)
