"""Whether an objective is one function: two evaluations must agree. If they do not, why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.objective.batches import tensors
from flatwise.objective.micro_batches import mixes_samples

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective

TOLERANCE = 1e-5
"""Relative: rounding, in an order of summation that may differ, not another loss."""


def check(objective: Objective) -> None:
    """Evaluate twice and compare; costs two forward passes over the data.

    Raises:
        RuntimeError: the two differ. The message names the cause and what to do.
    """
    first, second = (float(objective.value()) for _ in range(2))
    if not _agree(first, second, objective):
        raise RuntimeError(
            f"two evaluations of the same loss at the same weights gave {first:.9g} and {second:.9g}, so its derivatives "
            f"would be noise: {_cause(objective)}. (check=False goes on regardless.)"
        )


def _agree(first: float, second: float, objective: Objective) -> bool:
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    return abs(first - second) <= max(TOLERANCE, 2 * V.epsilon(objective.weights)) * max(abs(first), abs(second))


def _cause(objective: Objective) -> str:
    with objective.evaluation():
        held = objective.first()
    fixed = objective.on([held])
    if float(fixed.value()) != float(fixed.value()):
        return (
            "on one and the same batch they differ too. The model or the loss draws from a random generator of its own (torch's, "
            "Python's and NumPy's global ones are seeded for each evaluation), or remembers its calls outside of its buffers"
        )
    first, second = _fingerprints(objective), _fingerprints(objective)
    if not _are_close(sorted(first), sorted(second)):
        return (
            "the samples differ from pass to pass: augmentation, or a choice of samples, draws from a generator of its own "
            "(such as numpy.random.default_rng, or that of a persistent worker). Pass list(data), made once, or data without it"
        )
    mixes = (
        " and BatchNorm in training mode makes the loss of a sample depend on the others"
        if mixes_samples(objective)
        else ""
    )
    return f"the data come in another order at every pass{mixes}. Switch shuffling off, or pass list(data), made once"


def _fingerprints(objective: Objective) -> list[tuple[float, ...]]:
    """Some numbers for each sample of a pass over the data that tell it from the others."""
    with objective.evaluation():
        return [mark for part in objective.own_parts() for mark in _marks(part.batch)]


def _are_close(first: list[tuple[float, ...]], second: list[tuple[float, ...]]) -> bool:
    flat = zip((x for marks in first for x in marks), (x for marks in second for x in marks))
    return len(first) == len(second) and all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in flat)


def _marks(batch: Any) -> list[tuple[float, ...]]:
    """Sums of each sample of the first tensor, in two weightings."""
    first: Tensor = next(tensors(batch)).detach().double()
    rows = first.reshape(len(first), -1)
    weights = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device).sqrt()
    return [tuple(marks) for marks in torch.stack([rows.sum(1), rows @ weights], dim=1).tolist()]
