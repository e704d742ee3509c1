"""The base optimizer's step, and what the method makes of it."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from flatwise import vectors as V
from flatwise.methods import Dialogue, Method, State


def taken(base: Optimizer, method: Method, state: State) -> None:
    """Step; where the method has a hand in it, the weights are those before plus what it makes of the update."""
    if not (isinstance(method, Dialogue) and method.changes_update):
        base.step()
        return
    before = V.clone(state.weights)
    base.step()
    with torch.no_grad():
        made = V.add([p.detach() for p in V.present(state.weights)], before, -1.0)
        V.copy_(state.weights, before)
        V.add_(state.weights, method.update(state, before, made))
