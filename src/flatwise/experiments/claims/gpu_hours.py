"""What trainings at a paper's size take, counted and not tried: floating-point operations, and hours of a graphics processor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from flatwise.experiments.claims.paper_presets import DATASETS
from flatwise.tasks import Task, build_model
from flatwise.training import TrainConfig
from flatwise.training.setup import evaluations_in, resolved

if TYPE_CHECKING:
    from flatwise.experiments.claims.carrying import Trial

SPEED = 0.3 * 82.6e12
"""Operations a second: 30 % of the peak of an RTX 4090 in float32, the processor of arXiv 2501.12666."""

ASSUMED = "an RTX 4090 at 30 % of its 82.6 TFLOP/s in float32"


@dataclass(frozen=True)
class Work:
    """What one part of a claim takes.

    Attributes:
        name: of the part.
        pass_flops: floating-point operations of a forward and backward pass of one sample; a multiplication and an addition
            are two.
        evaluations: gradients of a batch, in all trainings of the part.
        passes: of samples, likewise.
    """

    name: str
    pass_flops: float
    evaluations: float
    passes: float

    @property
    def hours(self) -> float:
        """Hours at the assumed speed."""
        return self.pass_flops * self.passes / SPEED / 3600

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.pass_flops / 1e9:.2f} GFLOP forward and backward a sample, {self.evaluations / 1e6:.2f} million "
            f"gradient evaluations a seed on {self.passes / 1e6:.0f} million samples, {_shown(self.hours)} GPU hours"
        )


def lines(trials: Sequence[Trial]) -> list[str]:
    """What claims at the paper's size take: a line for each kind of cell, and a sum for each claim; shared trainings once."""
    counted: dict[Path, str] = {}
    found: list[str] = []
    for trial in trials:
        first = counted.setdefault(trial.folder, trial.claim.name)
        found += _lines(trial) if first == trial.claim.name else [f"{trial.claim.name}: the trainings of {first}"]
    return found


def _lines(trial: Trial) -> list[str]:
    claim, preset = trial.claim, trial.claim.preset(trial.scale)
    if claim.trainings is None:
        return []
    parts = [work(claim.trainings(preset, cell)) for cell in claim.cells(preset)]
    hours = sum(part.hours for part in parts)
    total = (
        f"in sum {_shown(hours)} GPU hours a seed, {_shown(hours * trial.seeds)} for {trial.seeds} seeds, on {ASSUMED}"
    )
    alike = Counter(map(str, parts)).items()
    cells = [f"  {part}" if number == 1 else f"  {number} cells like {part}" for part, number in alike]
    return [f"{claim.name}: {total}; measurements left out, nothing was trained", *cells]


def work(configs: Sequence[TrainConfig]) -> Work:
    """What some trainings of one model on one data set take. Nothing is read and nothing computed: only shapes are followed."""
    counted, model, data = [_evaluations(config) for config in configs], configs[0].model, configs[0].data
    passes = sum(number * samples for number, samples in counted)
    return Work(f"{model} on {data}", pass_flops(model, data), sum(number for number, _ in counted), passes)


def _shown(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


@cache
def pass_flops(model: str, data: str) -> float:
    """Floating-point operations of one forward and backward pass of one sample, counted on two of them without their values."""
    known = DATASETS[data]
    images, targets = torch.zeros(2, *known.shape), torch.zeros(2, dtype=torch.int64)
    task = Task(data, images, targets, images, targets, known.num_classes)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_model(model, task, seed=0)
        functional.cross_entropy(network(images.to("meta")), targets.to("meta")).backward()
    return counter.get_total_flops() / 2


def _evaluations(config: TrainConfig) -> tuple[float, float]:
    """How many gradients a training asks for (one a step where it is not known), and of how many samples in the mean."""
    config = resolved(config)
    samples = round((config.subset or DATASETS[config.data].train) * (1 - config.validation))
    per_epoch = math.ceil(samples / config.batch_size)
    steps = config.steps or (config.epochs or 0) * per_epoch
    return evaluations_in(config, steps) or steps, samples / per_epoch
