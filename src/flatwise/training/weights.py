"""The weights of another run as a start: all but those of the last linear layer, which is new."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from flatwise.runs import Run
from flatwise.training import checkpoints


def start_from(model: nn.Module, folder: str) -> None:
    """Give the model the last weights and buffers of the run in a folder, but leave its last linear layer as it is.

    Raises:
        ValueError: the run has no checkpoint, or is of another model.
        RunError: the folder is no run, or its checkpoint cannot be read.
    """
    newest = checkpoints.newest(Run.open(Path(folder).expanduser()))
    if newest is None:
        raise ValueError(f"the run {folder} has no checkpoint to start from; train it first")
    own, found = model.state_dict(), newest["model"]
    last = _last_linear(model)
    kept = {name: value for name, value in own.items() if last and name.startswith(f"{last}.")}
    wrong = [name for name in own.keys() ^ found.keys() if name not in kept]
    wrong += [name for name in own.keys() & found.keys() - kept.keys() if own[name].shape != found[name].shape]
    if wrong:
        raise ValueError(
            f"the run {folder} is of another model: {min(wrong)} does not fit; name the model that it trained"
        )
    model.load_state_dict(found | kept)


def _last_linear(model: nn.Module) -> str:
    """The name of the last linear layer; empty where there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else ""
