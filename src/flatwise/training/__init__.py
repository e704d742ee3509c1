"""Training: the settings of a run, the loop, its measurements and checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatwise.training.config import Settings, TrainConfig

if TYPE_CHECKING:
    from flatwise.training.loop import Interrupted as Interrupted
    from flatwise.training.loop import train as train
    from flatwise.training.mirrors import Mirror as Mirror
    from flatwise.training.setup import resolved as resolved

_HOMES = {"train": "loop", "Interrupted": "loop", "Mirror": "mirrors", "resolved": "setup"}

__all__ = ["Interrupted", "Mirror", "Settings", "TrainConfig", "resolved", "train"]


def __getattr__(name: str) -> Any:
    """The names that need torch, imported on first use: the command line needs the settings alone."""
    if name in _HOMES:
        return getattr(import_module(f"flatwise.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flatwise.training' has no attribute {name!r}")
