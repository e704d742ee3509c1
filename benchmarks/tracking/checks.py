"""A whole training with SAM, its weights and the exact top of the spectrum at every check; kept on disk."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.curvature.reference import exact
from benchmarks.curvature.training import Batch, Step, Training, run, task_of
from flatwise.methods import SAM

TRAINING = Training(images=20_000, epochs=3, planned=3)
RHO = 0.05
EVERY = 50
PROBE = 32
"""Training images, not augmented; a quarter of a batch."""

KNOWN = 3
"""Exact eigenpairs at each check: the first, and those that may be taken for it."""


@dataclass(frozen=True)
class Check:
    """The training at one step.

    Attributes:
        step: how many were taken.
        weights: the state dict.
        values: the largest eigenvalues on the probe set, descending [KNOWN].
        vectors: their eigenvectors, float32 [n, KNOWN].
    """

    step: int
    weights: dict[str, Tensor]
    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Run:
    """A training as it was without a probe.

    Attributes:
        probe: inputs and targets.
        checks: in order.
        seconds: the median time of a step then.
    """

    probe: Batch
    checks: list[Check]
    seconds: float


def trained(seed: int) -> Iterator[tuple[Step, Batch]]:
    """The training step by step, with its probe set."""
    task = task_of(TRAINING, seed)
    probe = task.train_inputs[:PROBE].clone(), task.train_targets[:PROBE].clone()
    for step in run(TRAINING, task, SAM(RHO), seed):
        yield step, probe


def is_checked(step: int) -> bool:
    """Whether the spectrum is looked at before this step."""
    return step % EVERY == 0 and step < TRAINING.steps


def kept_run(seed: int, folder: Path) -> Run:
    """From the folder, or trained and measured, and left there."""
    path = folder / f"sam-{TRAINING.model}-{TRAINING.images}-seed-{seed}.pt"
    wanted: dict[str, Any] = {"rho": RHO, "every": EVERY, "probe": PROBE, "known": KNOWN, **asdict(TRAINING)}
    kept: dict[str, Any] = torch.load(path) if path.exists() else {}
    if kept.get("training") != wanted:
        print(f"training with SAM, seed {seed}, and the exact eigenvalues at every check", flush=True)
        kept = {"training": wanted, **_made(seed)}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(kept, path)
    return Run(kept["probe"], [Check(**check) for check in kept["checks"]], kept["seconds"])


def _made(seed: int) -> dict[str, Any]:
    checks, seconds, probe = [], [], None
    for step, probe in trained(seed):
        seconds.append(step.seconds)
        if is_checked(step.index):
            found = exact(step.model, *probe, k=KNOWN)
            weights = copy.deepcopy(step.model.state_dict())
            checks.append(
                {"step": step.index, "weights": weights, "values": found.values, "vectors": found.vectors.float()}
            )
    return {"probe": probe, "checks": checks, "seconds": statistics.median(seconds[1:])}
