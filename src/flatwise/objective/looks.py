"""A look at an objective: what an evaluation of its loss does besides giving a number.

It may draw random numbers, compute under autocast, and have operations in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from flatwise.modules import RandomState, devices
from flatwise.objective import derivatives

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        draws: whether random numbers of torch were drawn.
        autocast: the dtype under whose autocast something was computed; None where nothing was.
        operations: the names of all operations in the graph.
        custom: those of somebody's own.
    """

    draws: bool = False
    autocast: str | None = None
    operations: frozenset[str] = frozenset()
    custom: tuple[str, ...] = ()


def look(objective: Objective) -> Look:
    """Evaluate the loss on the first batch of this process; nothing is seen where it has none."""
    places = devices([*objective.model.parameters(), *objective.model.buffers()])
    with objective.evaluation():
        if (batch := objective.first()) is None:
            return Look()
        before = RandomState(places)
        with Watch(objective.device) as watch:
            loss = objective.loss(batch)
        return Look(
            before != RandomState(places),
            watch.autocast,
            frozenset(derivatives.operations(loss)),
            tuple(derivatives.custom_functions(loss)),
        )


def autocast(device: torch.device) -> str | None:
    """The dtype to which autocast casts here and now; None where it is off."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")


class Watch(TorchFunctionMode):
    """Inside, every function of torch that is called from Python is looked at.

    Args:
        device: whose autocast to look at.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._dtypes: set[str | None] = set()

    @property
    def autocast(self) -> str | None:
        """The dtype under whose autocast something was computed; several in alphabetical order; None where it was off."""
        return ", ".join(sorted(name for name in self._dtypes if name)) or None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._dtypes.add(autocast(self._device))
        return func(*args, **(kwargs or {}))
