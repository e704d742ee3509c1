"""Buffers away from home: statistics of BatchNorm belong to weights, and at other weights there are several answers.

- kept: as in the model, so that the slice is one function of the weights alone, the one whose Hessian is measured.
- interpolated: as the weights are, between those of the checkpoints. Right at both ends; in between they are the statistics of no
  network, and the loss shows a barrier that may be theirs alone (arXiv 2211.08403).
- recomputed: from data, at each place. What is usually meant by the loss of a network at these weights.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flatwise.objective import Objective

Buffering: TypeAlias = Literal["kept", "interpolated", "recomputed"]


def choose(objective: Objective, wanted: Buffering | None, between: bool) -> str:
    """What is done with the buffers: what is wanted, if it has an effect, or else the answer without a hidden barrier.

    Args:
        objective: the loss.
        wanted: None lets this function choose.
        between: whether all checkpoints came with buffers of their own.

    Raises:
        ValueError: another word, or one that cannot be had or would have no effect here.
    """
    if wanted not in (*get_args(Buffering), None):
        raise ValueError(f'buffers must be "kept", "interpolated", "recomputed" or None, got {wanted!r}')
    if not any(True for _ in objective.model.buffers()):
        possible = "none"
    else:
        possible = "recomputed" if layers(objective) else "interpolated" if between else "kept"
    _check_possible(wanted, possible, between)
    return possible if possible == "none" else wanted or possible


def _check_possible(wanted: str | None, possible: str, between: bool) -> None:
    if wanted == "recomputed" != possible:
        raise ValueError(
            'buffers="recomputed" has no effect: no layer of the model computes with running statistics in this mode'
        )
    if wanted == "interpolated" and (possible == "none" or not between):
        what = (
            "the model has no buffers"
            if possible == "none"
            else "only state dicts hold buffers, and Vectors were given"
        )
        raise ValueError(f'buffers="interpolated" is not possible: {what}')


def layers(objective: Objective) -> list[Any]:
    """The layers that compute with running statistics while the objective is evaluated, BatchNorm or what keeps them like it."""
    with objective.evaluation():
        return [m for m in objective.model.modules() if not m.training and _has_statistics(m)]


def _has_statistics(module: Any) -> bool:
    statistics = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return all(isinstance(s, Tensor) for s in statistics) and hasattr(module, "momentum")


def recompute(objective: Objective, using: Sequence[Any]) -> None:
    """Put the mean of the statistics of all batches, weighted by samples, over all processes, into the layers `using` them.

    These must be `following`. Other layers, dropout say, stay in the mode of the objective.
    """
    statistics = [s for layer in using for s in (layer.running_mean, layer.running_var)]

    def measured(part: Any) -> list[Tensor]:
        for layer in using:
            layer.training = True  # until the objective's evaluation ends
        objective.loss_fn(objective.model, part.batch)
        return [s.clone() for s in statistics]

    found = objective.mean(measured, statistics)
    with torch.no_grad():
        for s, value in zip(statistics, found, strict=True):
            s.copy_(value)


@contextmanager
def following(using: Sequence[Any]) -> Generator[None]:
    """Layers whose running statistics, in training mode, become those of the last batch."""
    before = [layer.momentum for layer in using]
    try:
        for layer in using:
            layer.momentum = 1.0
        yield
    finally:
        for layer, momentum in zip(using, before, strict=True):
            layer.momentum = momentum


def install(objective: Objective, values: Mapping[str, Tensor]) -> None:
    """Write values into the buffers of these names."""
    with torch.no_grad():
        for name, buffer in objective.model.named_buffers():
            if name in values:
                buffer.copy_(values[name])


def blended(ends: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Buffers between those of several checkpoints; integers are those of the nearest one.

    Beyond the checkpoints no share is negative, as a variance must not become so.
    """
    inside = [max(0.0, share) for share in shares]
    inside = [share / sum(inside) for share in inside]
    nearest = ends[inside.index(max(inside))]
    return {name: _blend([end[name] for end in ends], inside, value) for name, value in nearest.items()}


def _blend(values: Sequence[Tensor], shares: Sequence[float], nearest: Tensor) -> Tensor:
    if not nearest.is_floating_point():
        return nearest
    parts = [value * share for value, share in zip(values, shares, strict=True) if share]
    return torch.stack(parts).sum(0)
