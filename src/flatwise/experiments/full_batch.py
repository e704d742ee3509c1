"""The full-batch protocol of the edge of stability: digits, a deep MLP, squared error (after arXiv 2309.12488)."""

from __future__ import annotations

from typing import Any

from flatwise.experiments.comparison import Arm
from flatwise.training import TrainConfig

PROTOCOL: dict[str, Any] = {
    "data": "digits-full",
    "model": "mlp",
    "widths": (200, 200, 200),
    "init": "glorot",
    "loss": "squared-error",
    "batch_size": 0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
}
"""All 1,797 images in every step, MLP 64-200-200-200-10, Glorot normal, no momentum, no decay, constant learning rate."""

STEP_WEIGHT = 0.02
"""The work of one full-batch evaluation, in units of a small mini-batch run's share."""


def edge_arm(name: str, label: str, **settings: Any) -> Arm:
    """An arm of the protocol; `settings` are those of `TrainConfig` that make it."""
    config = TrainConfig(**PROTOCOL, **settings)
    return Arm(name, label, config, weight=STEP_WEIGHT * (config.steps or 0))
