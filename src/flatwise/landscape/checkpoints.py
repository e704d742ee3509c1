"""Checkpoints as places: their weights, in parameter order, and the buffers that belong to them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.objective import Objective
from flatwise.objective.arguments import fitting
from flatwise.vectors import Vector

Checkpoint: TypeAlias = Mapping[str, Any] | Sequence[Tensor | None]
"""A state dict of the model, or a Vector of weights."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and `torch.compile` put before the names."""


@dataclass(frozen=True)
class Place:
    """Weights, and buffers by name where they are known."""

    weights: Vector
    buffers: Mapping[str, Tensor] | None = None


def place_of(objective: Objective, given: Checkpoint, label: str) -> Place:
    """The place of a checkpoint, as a copy; what it leaves out, as only a Vector may, is as in the model now.

    Raises:
        TypeError: it is neither a state dict nor a Vector.
        ValueError: it does not fit to the model, or differs from it in frozen parameters.
    """
    if isinstance(given, Mapping):
        return _from_state_dict(objective, given, label)
    if not isinstance(given, (list, tuple)):
        raise TypeError(
            f"the checkpoint {label!r} must be a state dict or a list of tensors, got {type(given).__name__}"
        )
    now = objective.weights
    filled = [w if v is None else v for v, w in zip(given, now)] if len(given) == len(now) else given
    return Place(V.clone(fitting(filled, objective.parameters())))


def _from_state_dict(objective: Objective, given: Mapping[str, Any], label: str) -> Place:
    own = {name: t for name, t in objective.model.state_dict().items() if isinstance(t, Tensor)}
    entries = {_unwrapped(name, own): t for name, t in given.items() if isinstance(t, Tensor)}
    _check_shapes(own, entries, label)
    _check_frozen(objective, entries, label)
    names = {p: name for name, p in objective.model.named_parameters()}
    weights = [entries[names[p]] for p in objective.parameters()]
    return Place(V.clone(fitting(weights, objective.parameters())), _buffers(objective, entries))


def _unwrapped(name: str, own: Container[str]) -> str:
    """The name without what wrappers put before it."""
    while name not in own and name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _buffers(objective: Objective, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the buffers in the entries, where their twins in the model are."""
    buffers = dict(objective.model.named_buffers())
    return {name: entries[name].detach().to(b.device, copy=True) for name, b in buffers.items() if name in entries}


def _check_shapes(own: Mapping[str, Tensor], entries: Mapping[str, Tensor], label: str) -> None:
    missing, unknown = sorted(own.keys() - entries.keys()), sorted(entries.keys() - own.keys())
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"holds {unknown[0]!r}, which the model does not know"
        raise ValueError(f"the checkpoint {label!r} is not one of this model: it {what}")
    for name, t in own.items():
        if t.shape != entries[name].shape:
            raise ValueError(
                f"the checkpoint {label!r} is not one of this model: {name!r} has shape {tuple(entries[name].shape)} "
                f"there and {tuple(t.shape)} here"
            )


def _check_frozen(objective: Objective, entries: Mapping[str, Tensor], label: str) -> None:
    """What the objective does not move must be in the checkpoint as it is in the model."""
    moving = set(objective.parameters())
    for name, p in objective.model.named_parameters():
        if p not in moving and not torch.equal(p.detach(), entries[name].to(p.device, p.dtype)):
            raise ValueError(
                f"the checkpoint {label!r} differs from the model in {name!r}, which does not move; let it require grad, or "
                "load one of the checkpoints first"
            )
