"""What a method may look at beside the weights: the names of the parameters, the base optimizer's momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from flatwise.methods import Method, State

MOMENTUM = ("momentum_buffer", "exp_avg")
"""What torch's optimizers call it, in the order of preference."""

_SETTINGS = ("momentum", "betas", "beta1")


def needed(method: Method) -> frozenset[str]:
    """What the method must be shown: "names", "momentum", or nothing."""
    return getattr(method, "needs", frozenset())


def shown(state: State, method: Method, base: Optimizer, model: nn.Module | None) -> State:
    """The state with the views that the method needs; they cost time in every step, so others do without."""
    needs = needed(method)
    if "names" in needs:
        state.names = names(state.weights, model)
    if "momentum" in needs:
        state.momentum = [None if p is None else _momentum(base.state.get(p, {})) for p in state.weights]
    return state


def hidden(state: State) -> State:
    """The state as it is kept: without views, and without what one step alone needed."""
    state.weights, state.perturbed, state.names, state.momentum = [], [], [], []
    return state


def names(parameters: Sequence[Tensor | None], model: nn.Module | None) -> list[str]:
    """The name of each parameter in the model, without what wrappers put before it; empty where it is not in there."""
    known = {} if model is None else {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    return [known.get(id(p), "").replace("_orig_mod.", "") for p in parameters]


def has_momentum(base: Optimizer) -> bool:
    """Whether the base optimizer keeps a running sum or mean of gradients (preconditioned in RMSprop), as its settings tell."""
    return all(any(_first(group.get(name)) for name in _SETTINGS) for group in base.param_groups)


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, tuple | list) else value or 0.0)


def _momentum(entries: dict[str, Any]) -> Tensor | None:
    return next((entries[name] for name in MOMENTUM if isinstance(entries.get(name), Tensor)), None)
