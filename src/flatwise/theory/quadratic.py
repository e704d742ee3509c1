"""SGD around any method on a loss that is curved along one eigenvector and slopes elsewhere.

The slope gives the gradient its norm. Weights elsewhere drift, and nothing hangs on where they are; so all that there is
to follow is the component along the eigenvector, and what is remembered of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods import At, Dialogue, EigenSAM, Evaluation, State, Wrapper, drive
from flatwise.methods.eigenvectors import EIGENVECTOR
from flatwise.vectors import Vector

LATE = 1_000_000
"""About the step that is looked at: what a method does only at first, or late, has begun or ended."""
SETTLED, SWUNG, PATIENCE = 1e-13, 1e-9, 100_000
"""The relative change of a memory from one period to the next at which it has settled, elsewhere and along the eigenvector,
and the periods that it is given."""


@dataclass(frozen=True)
class Surroundings:
    """What a method's step depends on beside the method and the curvature; see `flatwise.theory.method_edge`."""

    lr: float
    gradient_norm: float
    momentum: float = 0.0
    nesterov: bool = False
    alignment: float = 0.0
    weight: float = 1.0
    size: int = 1

    @property
    def slope(self) -> float:
        """Of the loss elsewhere."""
        return self.gradient_norm * math.sqrt(1 - self.alignment**2)


@dataclass
class Memory:
    """All that goes from one step to the next; entry 0 of each vector is the one along the eigenvector.

    Attributes:
        place: of the weights, from the minimum along the eigenvector.
        momentum: of SGD; None without.
        state: the method's.
    """

    place: Tensor
    momentum: Tensor | None
    state: State

    def vectors(self) -> list[Tensor]:
        """Those that a linear map acts on, in a fixed order. Tracked eigenvectors stay what they are."""
        own = [vector for name, vector in sorted(self.state.vectors.items()) if not is_eigenvector(name)]
        return V.present([self.place, self.momentum, *(t for vector in own for t in vector)])

    def along(self) -> Tensor:
        """Their components along the eigenvector."""
        return torch.stack([vector[0] for vector in self.vectors()])

    def nudged(self, which: int, by: float) -> Memory:
        """A copy with one of these components changed."""
        state = self.state.copy()
        state.vectors = {name: V.clone(vector) for name, vector in state.vectors.items()}
        momentum = None if self.momentum is None else self.momentum.clone()
        copied = Memory(self.place.clone(), momentum, state)
        copied.vectors()[which][0] += by
        return copied


class Training:
    """Steps of SGD around a method, in float64.

    Args:
        method: any whose steps do not go by the value of the loss.
        curvature: along the eigenvector, > 0.
        about: learning rate, gradient norm and so on.
    """

    def __init__(self, method: Dialogue, curvature: float, about: Surroundings) -> None:
        self.method, self.curvature, self.about = with_exact_eigenvector(method), curvature, about
        self.period = period_of(method)

    def after_a_period(self, memory: Memory) -> Memory:
        """What becomes of a memory, which is not changed."""
        for _ in range(self.period):
            memory = self.step(memory)
        return memory

    def step(self, memory: Memory) -> Memory:
        """One step from a memory, which is not changed."""
        about, state = self.about, memory.state.copy()
        state.weights, state.momentum, state.names = [memory.place + about.weight], [memory.momentum], ["weight"]
        (along,) = V.present(drive(self.method, lambda at: self._answer(memory.place, at), state))
        momentum = None if memory.momentum is None else about.momentum * memory.momentum + along
        if momentum is not None:
            along = along + about.momentum * momentum if about.nesterov else momentum
        update: Vector = [-about.lr * along]
        if self.method.changes_update:
            update = self.method.update(state, state.weights, update)
        state.step += 1
        return Memory(memory.place + V.present(update)[0], momentum, state)

    def settled(self) -> Memory:
        """At the minimum along the eigenvector, with memories that no longer change elsewhere."""
        place = torch.zeros(1 + self.about.size, dtype=torch.float64)
        state = self.method.init([place])
        state.step = LATE - LATE % self.period
        memory = Memory(place, torch.zeros_like(place) if self.about.momentum else None, state)
        for _ in range(PATIENCE):
            before, memory = memory, self.after_a_period(memory)
            memory.place = torch.zeros_like(place)
            if draws_of(self.method) or _are_equal(before.vectors(), memory.vectors()):
                break
        for vector in memory.vectors():  # noise leaves something there, which cancels in differences
            vector[0] = 0.0
        return memory

    def swung(self, memory: Memory) -> float:
        """What a step multiplies a component of the alignment's size by, once memories go back and forth with it.

        The mean over beginning on either side: what is drawn, and the same on both sides, cancels.
        """
        size = self.about.alignment * self.about.gradient_norm / self.curvature
        return (self._swung(memory, size) + self._swung(memory, -size)) / 2

    def _swung(self, memory: Memory, size: float) -> float:
        for _ in range(PATIENCE):
            place = torch.zeros_like(memory.place)
            place[0] = size = -size
            before, memory = memory, self.step(replace(memory, place=place))
            if torch.allclose(-memory.along()[1:], before.along()[1:], rtol=SWUNG, atol=0.0):
                break
        return float(memory.place[0]) / size

    def _answer(self, place: Tensor, at: At) -> Evaluation:
        displacement = at.displacement()
        if displacement is not None:
            place = place + V.present(displacement)[0]
        gradient = torch.zeros_like(place)
        gradient[0], gradient[1] = self.curvature * place[0], self.about.slope
        return Evaluation(self.curvature * place[0] ** 2 / 2 + self.about.slope * place[1], [gradient])


def is_eigenvector(name: str) -> bool:
    """Whether a vector of a method's state is a tracked eigenvector."""
    return name == EIGENVECTOR or name.startswith("dominant.")


def with_exact_eigenvector(method: Dialogue) -> Dialogue:
    """The method with the eigenvector known to it, if it asks for one."""
    changed: Any = method
    if isinstance(method, Wrapper):
        changed = replace(changed, method=with_exact_eigenvector(method.method))
    if hasattr(method, "source"):
        changed = replace(changed, source=_eigenvectors, iterations=EigenSAM.iterations)
    return replace(changed, subspace=_eigenvectors) if hasattr(method, "subspace") else changed


def _eigenvectors(known: Any, weights: Vector) -> list[Vector]:
    first = torch.zeros_like(V.present(weights)[0])
    first[0] = 1.0
    return [[first], *([torch.zeros_like(first)] for _ in known[1:])]


def period_of(method: Dialogue) -> int:
    """Steps after which the method does the same again; refreshes of an eigenvector that is known do not count."""
    own = 1 if hasattr(method, "source") or hasattr(method, "subspace") else getattr(method, "every", 1)
    return math.lcm(own, period_of(method.method)) if isinstance(method, Wrapper) else own


def draws_of(method: Dialogue) -> bool:
    """Whether the method draws random numbers."""
    return draws_of(method.method) if isinstance(method, Wrapper) else hasattr(method, "seed")


def drawn(method: Dialogue, seed: int) -> Dialogue:
    """The method with another seed."""
    changed: Any = method
    if isinstance(method, Wrapper):
        return cast(Dialogue, replace(changed, method=drawn(method.method, seed)))
    return cast(Dialogue, replace(changed, seed=seed))


def _are_equal(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=SETTLED, atol=0.0) for a, b in zip(before, after, strict=True))
