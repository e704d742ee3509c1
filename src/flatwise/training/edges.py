"""The edge of stability that a run's top eigenvalue is compared with, only where one is derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flatwise import theory
from flatwise.training import hyper
from flatwise.training.config import TrainConfig


@dataclass(frozen=True)
class Place:
    """What an edge depends on: settings, and the norm of the gradient at the weights."""

    lr: float
    momentum: float
    rho: float
    gradient_norm: float


_EDGES: dict[str, tuple[str, Callable[[Place], Any]]] = {
    "sgd": ("GD edge 2/lr", lambda at: theory.heavy_ball_edge(at.lr, at.momentum)),
    "sam": ("SAM edge", lambda at: theory.sam_edge(at.lr, at.rho, at.gradient_norm, at.momentum)),
}


def is_derived(config: TrainConfig, *, full_batch: bool, mode_matters: bool) -> bool:
    """Whether an edge is derived for this run.

    It needs the full batch, measured as it is trained on: all samples, no augmentation, float32, a model that computes the same
    in training and in evaluation mode; plain SGD without weight decay; and a single ascent on the whole batch. With momentum
    only gradient descent's is drawn: SAM then settles in cycles well below its edge (see `theory.sam_edge`), which is no line
    to follow. Eigen-SAM's edge is none of the top eigenvalue: it relates the curvature along the tracked vector to the swing
    there (see `theory.eigen_sam_edge`).
    """
    as_trained = full_batch and config.probe_samples is None and not config.augment and not mode_matters
    plain = config.optimizer == "sgd" and config.weight_decay == 0 and config.precision == "float32"
    with_momentum = bool(config.momentum) and config.method != "sgd"
    once = config.parts is None and hyper.for_method(config.hyper, config.method).get("ascents", 1) == 1
    return as_trained and plain and config.method in _EDGES and not with_momentum and once


def edges(config: TrainConfig, lr: float, rho: float | None, gradient_norm: float) -> dict[str, Any]:
    """The entries `edge`, `edge_name` and `gd_edge` of a probe record, at the current learning rate and rho."""
    name, edge = _EDGES[config.method]
    at = Place(lr, config.momentum or 0.0, rho or 0.0, gradient_norm)
    named = name.replace("GD edge 2/lr", "heavy-ball edge") if at.momentum else name
    return {"edge": float(edge(at)), "edge_name": named, "gd_edge": float(theory.gd_edge(lr))}
