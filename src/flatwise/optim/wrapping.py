"""An optimizer around another one, whose parameter groups and state it shows as its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class Wrapping(Optimizer):
    """The same list of groups, the same dictionaries: schedulers, frameworks and checkpoints see the base optimizer's."""

    base: Optimizer

    def __init__(self, base_optimizer: Optimizer) -> None:
        # torch's own constructor would make parameter groups of our own; this sets up what it needs around the base's.
        super().__setstate__({"base": base_optimizer, "defaults": base_optimizer.defaults})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's parameter groups: the same list, the same dictionaries."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.base.param_groups = groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's own state, by parameter; ours is in `state_dict()` only."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.base.state = state

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
