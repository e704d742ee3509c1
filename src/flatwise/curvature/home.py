"""Where a loss was differentiated: what is kept from there serves as long as everything that the loss hangs on is the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatwise import vectors as V
from flatwise.objective import Objective
from flatwise.objective.batches import tensors
from flatwise.vectors import Vector


class Home:
    """An objective as it was when this was made: weights, buffers, modes, settings, data, autocast.

    Weights and buffers are compared by value, with a copy; frozen ones by their norms, as they may be many. Data are compared if
    they are a list: are its tensors the same, and not written to since. What a module or the loss function keeps elsewhere is
    not seen.
    """

    def __init__(self, objective: Objective) -> None:
        self._things = _things(objective)
        self._marks = _marks(objective)
        self._norms = _norms(_frozen(objective))
        self._values = V.clone(_values(objective))

    def is_that_of(self, objective: Objective) -> bool:
        """Whether nothing has changed since, on this process."""
        things = _things(objective)
        return (
            len(things) == len(self._things)
            and all(a is b for a, b in zip(things, self._things, strict=True))
            and _marks(objective) == self._marks
            and _norms(_frozen(objective)) == self._norms
            and _are_same(_values(objective), self._values)
        )


def _things(objective: Objective) -> list[Any]:
    """What must be the same objects; holding them keeps their addresses from being used again."""
    return [objective.model, objective.loss_fn, objective.data, *_states(objective), *_batches(objective.data)]


def _states(objective: Objective) -> list[Tensor]:
    """Parameters and buffers of the model, and of the loss function where that is a module."""
    modules = [m for m in (objective.model, objective.loss_fn) if isinstance(m, nn.Module)]
    return [t for m in modules for t in (*m.parameters(), *m.buffers())]


def _batches(data: Iterable[Any]) -> list[Tensor]:
    return [t for batch in data for t in tensors(batch)] if isinstance(data, (list, tuple)) else []


def _marks(objective: Objective) -> tuple[Any, ...]:
    """What must be equal. Tensors that were written to may have their values again, but a graph that holds them is spoilt."""
    written = [t for t in (*objective.model.parameters(), *_batches(objective.data)) if not t.is_inference()]
    return objective.state(), objective.mode, objective.seed, [t._version for t in written]


def _values(objective: Objective) -> Vector:
    frozen = {id(t) for t in _frozen(objective)}
    return [t.detach() for t in _states(objective) if id(t) not in frozen]


def _frozen(objective: Objective) -> list[Tensor]:
    return [t for t in _states(objective) if isinstance(t, nn.Parameter) and not t.requires_grad]


def _norms(frozen: Sequence[Tensor]) -> list[float]:
    return [float(V.norm([t.detach()])) for t in frozen]


def _are_same(a: Vector, b: Vector) -> bool:
    """Whether two vectors are equal in every bit, on this process."""
    if [(t.shape, t.device, t.dtype) for t in V.present(a)] != [(t.shape, t.device, t.dtype) for t in V.present(b)]:
        return False
    return all(torch.equal(s, t) for s, t in zip(V.locals_of(V.present(a)), V.locals_of(V.present(b)), strict=True))
