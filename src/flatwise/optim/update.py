"""The base optimizer's step, and what the method makes of it."""

from __future__ import annotations

from typing import cast

import torch
from torch.optim import Optimizer

from flatwise import vectors as V
from flatwise.methods import Dialogue, Method, State
from flatwise.vectors import Vector


def taken(base: Optimizer, method: Method, state: State) -> None:
    """Step; where the method has a hand in it, the weights are those before plus what it makes of the update.

    It is shown what the base optimizer moves: parameters without a gradient stay as they are.
    """
    if not getattr(method, "changes_update", False):
        base.step()
        return
    method = cast(Dialogue, method)
    moving = [p if p is not None and p.grad is not None else None for p in state.weights]
    before = V.clone(moving)
    base.step()
    with torch.no_grad():
        made = V.add(before, moving, -1.0)
        V.scale_(made, -1.0)
        untouched = _versions(made)
        try:
            changed = method.update(state, before, made)
        except BaseException:
            V.copy_(moving, before)
            raise
        if changed is made and _versions(made) == untouched:
            return  # the base optimizer's step stands, bitwise
        V.copy_(moving, before)
        V.add_(moving, changed)


def _versions(vector: Vector) -> list[int]:
    """They show whether somebody wrote into it."""
    return [t._version for t in V.locals_of(V.present(vector))]
