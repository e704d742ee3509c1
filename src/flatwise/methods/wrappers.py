"""Methods around methods: when, and how long the step is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.checks import a_method, no_share, positive_integer, whole
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State
from flatwise.vectors import Vector


@dataclass(frozen=True)
class Wrapper(Dialogue):
    """A method that lets another one speak, and has its rho, its memory and its needs.

    The other one counts the base optimizer's steps, not its turns: what it does at every k-th step falls on those of
    them at which it is its turn. `Interval(LookSAM(every=5), every=5)` is SAM whenever it speaks.

    Args:
        method: the other one.

    Raises:
        TypeError: it is not a method of this package or derived from `Dialogue`.
    """

    method: Dialogue

    def __post_init__(self) -> None:
        a_method("method", self.method)

    @property
    def rho(self) -> float:
        """The rho of the method within; AttributeError where it has none."""
        return getattr(self.method, "rho")  # noqa: B009 - the type does not promise one

    @property
    def adaptive(self) -> bool:
        """As the method within."""
        return self.method.adaptive

    @property
    def needs(self) -> frozenset[str]:
        """As the method within."""
        return self.method.needs

    @property
    def changes_update(self) -> bool:
        """As the method within."""
        return self.method.changes_update

    @property
    def cost(self) -> float | None:
        """As the method within."""
        return self.method.cost

    def evaluations(self, steps: int) -> float | None:
        """As the method within."""
        return self.method.evaluations(steps)

    def init(self, vectors: Vector) -> State:
        """The memory of the method within."""
        return self.method.init(vectors)

    def with_rho(self, rho: float) -> Self:
        """With another rho of the method within."""
        return replace(self, method=self.method.with_rho(rho))

    def passes(self, state: State) -> Passes:
        """The dialogue of the method within."""
        return (yield from self.method.passes(state))

    def update(self, state: State, weights: Vector, update: Vector) -> Vector:
        """As the method within."""
        return self.method.update(state, weights, update)


@dataclass(frozen=True)
class Stable(Wrapper):
    """SSAM (arXiv 2401.07250): the direction of another method, scaled to the norm of the gradient at the weights.

    It keeps the base optimizer's step where SAM's gradient is much longer than the loss's own, and has no
    hyper-parameter. With a method that never evaluates at the weights, such as TSAM, one evaluation more, which `cost`
    does not count.

    Args:
        method: usually SAM (the paper's SAM*) or USAM (the paper's default).

    Raises:
        TypeError: it is no method.
    """

    def passes(self, state: State) -> Passes:
        """The dialogue of the method within, listened to for the gradient at the weights."""
        norms: list[Tensor] = []
        direction = yield from _overheard(self.method.passes(state), norms)
        if not norms:
            here = yield At.weights()
            norms.append(V.norm(here.release()))
        norm, wanted = V.norm(direction), norms[-1]
        # The gradient itself stays as it is, bitwise.
        V.scale_(direction, torch.where(norm == wanted, 1.0, wanted * V.reciprocal(norm)))
        return direction


def _overheard(dialogue: Passes, norms: list[Tensor]) -> Generator[At, Evaluation, Vector]:
    """A dialogue's direction, while the norms of gradients at the weights are written down."""
    requests = [next(dialogue)]
    while True:
        is_of_weights = requests[0].vector is None and not requests[0].probe
        answer = yield requests.pop()  # a gradient that the method has released need not live through the evaluation
        if is_of_weights:
            norms.append(V.norm(answer.gradient))
        try:
            requests.append(dialogue.send(answer))
        except StopIteration as finished:
            return finished.value


class _Now(Wrapper, ABC):
    """At some steps the method within, at the others the base optimizer alone, with one evaluation."""

    @abstractmethod
    def _speaks(self, state: State) -> bool: ...

    def passes(self, state: State) -> Passes:
        """The dialogue of the method within when it is its turn, else the gradient at the weights."""
        if self._speaks(state):
            return (yield from self.method.passes(state))
        here = yield At.weights()
        return here.release()

    def update(self, state: State, weights: Vector, update: Vector) -> Vector:
        """As the method within when it is its turn."""
        return self.method.update(state, weights, update) if self._speaks(state) else update


@dataclass(frozen=True)
class Late(_Now):
    """Late-phase SAM (arXiv 2410.10373): another method from step `start` to step `stop`, the base optimizer before and after.

    A few epochs of SAM at the end are said to find minima almost as flat as SAM all the time. The base optimizer goes
    on as it is, with its momentum; the paper's code begins with a new one.

    Args:
        method: the method of the late phase.
        start: its first step; >= 0. The default is ours.
        stop: the step from which on it is over, > start; None: never.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    start: int = 1000
    stop: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        no_share("start", self.start)
        whole("start", self.start)
        if self.stop is not None:
            no_share("stop", self.stop)
            whole("stop", self.stop)
            if self.stop <= self.start:
                raise ValueError(f"stop must be above start, got start={self.start}, stop={self.stop}")

    @property
    def cost(self) -> float | None:
        """As many as the method within, while it is its turn: the mean depends on the number of steps, see `evaluations`."""
        return self.method.cost if self.start == 0 and self.stop is None else None

    def evaluations(self, steps: int) -> float | None:
        """One for each step, and those of the method within while it is its turn."""
        turns = max(min(steps, steps if self.stop is None else self.stop) - self.start, 0)
        within = self.method.evaluations(turns)
        return None if within is None else steps - turns + within

    def _speaks(self, state: State) -> bool:
        return state.step >= self.start and (self.stop is None or state.step < self.stop)


@dataclass(frozen=True)
class Interval(_Now):
    """Another method at steps 0, every, 2 * every ..., the base optimizer in between.

    Args:
        method: the method that takes its turn.
        every: steps from one turn to the next; >= 1.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("every", self.every)

    @property
    def cost(self) -> float | None:
        """One evaluation, and more at every k-th step, where the steps of the method within cost the same."""
        return None if self.method.cost is None else 1 + (self.method.cost - 1) / self.every

    def evaluations(self, steps: int) -> float | None:
        """One for each step, and those of the method within when it is its turn."""
        turns = -(-steps // self.every)
        within = self.method.evaluations(turns)
        return None if within is None else steps - turns + within

    def _speaks(self, state: State) -> bool:
        return state.step % self.every == 0
