"""Updates projected on the top eigenspace of the Hessian, or off it."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise import vectors as V
from flatwise.methods.checks import a_function, positive_integer
from flatwise.methods.dialogue import Dialogue, Passes, State
from flatwise.methods.eigenvectors import Eigenspace, ask
from flatwise.methods.wrappers import Wrapper
from flatwise.vectors import Vector

NAME, NEXT_LOOK = "dominant.{}", "next_look"


@dataclass(frozen=True)
class Dominant(Wrapper):
    """Dom-SGD (arXiv 2405.16002): the update of the base optimizer, projected on the `k` top eigenvectors of the full loss.

    The loss is said to stop falling, although the gradient lies almost in this space. It is the whole update that is
    projected, with momentum and weight decay. Around `SGD()` one evaluation a step, and what the eigenvectors take;
    they are in the checkpoint.

    Args:
        method: what the base optimizer steps along.
        k: the dimension of the space, the number of classes in the paper; >= 1.
        every: steps between two looks at the Hessian, 1 in the paper; >= 1.
        subspace: where eigenvectors come from: `flatwise.curvature.eigenspace(objective)` for those of a whole data
            set.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    k: int = 10
    every: int = 1
    subspace: Eigenspace | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("k", self.k)
        positive_integer("every", self.every)
        if self.subspace is not None:
            a_function("subspace", self.subspace)
        if _projects(self.method):
            raise ValueError(
                "method projects on a subspace already: one of them is enough, with a larger or a smaller k"
            )

    @property
    def changes_update(self) -> bool:
        """The update is projected."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """A subspace, if there is none."""
        return self.method.needs | ({"subspace"} if self.subspace is None else frozenset[str]())

    def init(self, vectors: Vector) -> State:
        """The memory of the method within, and as many zero vectors as will be known."""
        state = self.method.init(vectors)
        state.vectors |= {NAME.format(i): V.zeros_like(vectors) for i in range(self.k)}
        state.numbers[NEXT_LOOK] = 0.0
        return state

    def passes(self, state: State) -> Passes:
        """Look at the Hessian when it is time, then the dialogue of the method within."""
        if self.subspace is not None and state.step >= state.numbers[NEXT_LOOK]:
            state.numbers[NEXT_LOOK] = float(state.step + self.every)
            found = ask("subspace", self.subspace, self._basis(state), state)
            state.vectors |= {NAME.format(i): vector for i, vector in enumerate(found)}
        return (yield from self.method.passes(state))

    def update(self, state: State, weights: Vector, update: Vector) -> Vector:
        """The part of the update in the space."""
        return self._inside(state, self.method.update(state, weights, update))

    def _inside(self, state: State, update: Vector) -> Vector:
        inside = V.zeros_like(update)
        for vector in self._basis(state):
            V.add_(inside, vector, V.dot(update, vector))
        return inside

    def _basis(self, state: State) -> list[Vector]:
        return [state.vectors[NAME.format(i)] for i in range(self.k)]


def _projects(method: Dialogue) -> bool:
    return isinstance(method, Dominant) or (isinstance(method, Wrapper) and _projects(method.method))


@dataclass(frozen=True)
class Bulk(Dominant):
    """Bulk-SGD (arXiv 2405.16002): the update of the base optimizer without its part along the `k` top eigenvectors.

    It is said to train as well as the whole update. Arguments as for `Dominant`.
    """

    def update(self, state: State, weights: Vector, update: Vector) -> Vector:
        """The part of the update off the space."""
        update = self.method.update(state, weights, update)
        return V.add(update, self._inside(state, update), -1.0)
