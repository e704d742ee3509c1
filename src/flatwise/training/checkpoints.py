"""Checkpoints of a run: weights only (no code is unpickled), written atomically, the last two kept."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch

from flatwise.runs import Run, RunWarning, replacing

KEPT = 2


def save(run: Run, step: int, content: dict[str, Any]) -> None:
    """Write the checkpoint of a step; a process killed meanwhile leaves the earlier ones as they were."""
    with replacing(run.checkpoint_path(step)) as path:
        torch.save(content, path)
    for old in run.checkpoints()[:-KEPT]:
        old.unlink()


def newest(run: Run) -> dict[str, Any] | None:
    """The content of the newest checkpoint that can be read; None when there is none.

    Warns:
        RunWarning: naming each checkpoint that is truncated or corrupt.
    """
    for path in reversed(run.checkpoints()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"the checkpoint {path} cannot be read and is left out ({reason})", RunWarning, stacklevel=2)
    return None
