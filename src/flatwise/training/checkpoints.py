"""Checkpoints of a run: weights only (no code is unpickled), written atomically; the last two are kept, and those asked for."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flatwise.runs import Run, RunError, RunWarning, replacing

KEPT = 2


def save(run: Run, step: int, content: dict[str, Any], keeps: Callable[[int], bool]) -> None:
    """Write the checkpoint of a step; a process killed meanwhile leaves the earlier ones as they were.

    Of the earlier ones the last remains, and those of the steps that `keeps` says.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    place = run.checkpoint_path(step)
    with replacing(place) as path:
        try:
            torch.save(content, path)
        except RuntimeError as error:  # what torch makes of an error of the disk
            raise OSError(f"the checkpoint {place} cannot be written; is the disk full? ({_reason(error)})") from error
    for old in run.checkpoints()[:-KEPT]:
        if not keeps(step_of(old)):
            old.unlink()


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        RunError: it is gone, truncated or corrupt.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError) as error:
        raise RunError(f"the checkpoint {path} cannot be read ({_reason(error)})") from error
    except (EOFError, ValueError, TypeError, LookupError, AttributeError, pickle.UnpicklingError) as error:
        # Rubbish can be anything to an unpickler; and torch's own words on it advise to run it as code.
        raise RunError(f"the checkpoint {path} cannot be read: it is no checkpoint, or damaged") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def newest(run: Run) -> dict[str, Any] | None:
    """The content of the newest checkpoint that can be read; None when there is none.

    Warns:
        RunWarning: naming each checkpoint that is truncated or corrupt.
    """
    for path in reversed(run.checkpoints()):
        try:
            return load(path)
        except RunError as error:
            warnings.warn(f"{error}; it is left out", RunWarning, stacklevel=2)
    return None
