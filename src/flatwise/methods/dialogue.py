"""The dialogue between a method and the training loss: requests (`At`), answers (`Evaluation`), memory (`State`).

A method is a generator. It yields the place at which it wants the loss evaluated, receives the evaluation, and returns
the direction for the base optimizer. It never moves a parameter and never sees a model, a scaler or a process group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeAlias, cast

from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.selection import Selection
from flatwise.vectors import Scalar, Vector


@dataclass(frozen=True)
class At:
    """A request: evaluate the loss there. Made by `weights`, `along`, `offset` and `displaced`, not by hand."""

    vector: Vector | None = None
    length: Scalar = 1.0
    normalised: bool = False
    by_group: bool = False
    probe: bool = False
    selection: Selection | None = None

    @staticmethod
    def weights(*, probe: bool = False, selection: Selection | None = None) -> At:
        """At the weights. A probe only measures: evaluation mode, and buffers do not advance. A selection is shown losses."""
        return At(probe=probe, selection=selection)

    @staticmethod
    def along(vector: Vector, length: Scalar, *, probe: bool = False) -> At:
        """Displaced by `length` along `vector`, whose own norm does not matter.

        The optimizer scales each parameter group by its own rho, leaves out groups with rho 0, and takes the norm over
        what is displaced. Along a zero vector nothing is displaced. A negative length goes the other way.
        """
        return At(vector, length, normalised=True, by_group=True, probe=probe)

    @staticmethod
    def offset(vector: Vector, length: Scalar = 1.0, *, selection: Selection | None = None) -> At:
        """Displaced by `length * vector` as it is, but each parameter group in proportion to its own rho."""
        return At(vector, length, by_group=True, selection=selection)

    @staticmethod
    def displaced(vector: Vector, length: Scalar = 1.0, *, probe: bool = False) -> At:
        """Displaced by `length * vector` as it is: all groups, no normalisation."""
        return At(vector, length, probe=probe)

    def displacement(self) -> Vector | None:
        """The displacement itself, for drivers that can afford a copy; None at the weights."""
        if self.vector is None:
            return None
        return V.scale(self.vector, self.length * V.reciprocal(V.norm(self.vector)) if self.normalised else self.length)


class Evaluation:
    """The loss (0-d tensor) and its gradient at one place: unscaled, and the mean over data-parallel replicas.

    `repeatable` says that evaluating again would give the same numbers but for the mode: no random numbers were drawn,
    and every replica saw the same gradient. It is a 0-d boolean tensor or a bool; read it only where a host
    synchronisation is affordable.
    """

    def __init__(self, loss: Tensor, gradient: Vector, repeatable: bool | Tensor = True) -> None:
        self.loss = loss
        self.repeatable = repeatable
        self._gradient: Vector | None = gradient

    @property
    def gradient(self) -> Vector:
        """The gradient, kept alive by this evaluation."""
        if self._gradient is None:
            raise RuntimeError("this gradient was handed over by release(); a method that needs it twice keeps it")
        return self._gradient

    def release(self) -> Vector:
        """The gradient, handed over: it does not live through the next evaluation unless the caller keeps it."""
        gradient, self._gradient = self.gradient, None
        return gradient


@dataclass
class State:
    """What a method remembers from step to step, and what it may look at. The first four are in the checkpoint, nothing else is.

    Attributes:
        step: steps that the base optimizer has taken.
        seed: for the method's own random numbers.
        vectors: the method's own, by name, all of them from `init` on: a distributed checkpoint is read into what is
            there.
        numbers: likewise.
        weights: a read-only view; None where a parameter is frozen.
        perturbed: which parameters have a rho above zero; empty: all.
        names: of the parameters in the model; empty where it is not known.
        momentum: a read-only view of the base optimizer's momentum, the running sum or mean of gradients; None where a
            parameter has none yet.
        notes: for the diagnostics of this step only.
    """

    step: int = 0
    seed: int = 0
    vectors: dict[str, Vector] = field(default_factory=dict[str, Vector])
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    weights: Vector = field(default_factory=list[Tensor | None])
    perturbed: Sequence[bool] = ()
    names: Sequence[str] = ()
    momentum: Vector = field(default_factory=list[Tensor | None])
    notes: dict[str, Scalar] = field(default_factory=dict[str, Scalar])

    def copy(self) -> State:
        """A copy that a dialogue may change: records are new, tensors are shared and must be replaced, not written into."""
        vectors = {name: list(vector) for name, vector in self.vectors.items()}
        return State(
            self.step, self.seed, vectors, dict(self.numbers), self.weights, self.perturbed, self.names, self.momentum
        )

    def displaces(self, rho: float) -> bool:
        """Whether a displacement of length `rho` moves any parameter; where not, one evaluation is enough."""
        return rho != 0 and (not self.perturbed or any(self.perturbed))

    def on_perturbed(self, vector: Vector) -> Vector:
        """The vector with None where the parameter is in a group with rho 0."""
        return V.restrict(vector, self.perturbed) if self.perturbed else vector


Passes: TypeAlias = Generator[At, Evaluation, Vector]


class Method(Protocol):
    """What every method offers: a frozen dataclass of hyper-parameters with these two functions. `Dialogue` has the rest."""

    @property
    def adaptive(self) -> bool:
        """Whether the number of evaluations depends on data."""
        ...

    def init(self, vectors: Vector) -> State:
        """The state before the first step, for parameters shaped like `vectors`."""
        ...

    def passes(self, state: State) -> Passes:
        """The dialogue of one step: yields places, receives evaluations, returns the direction to step along."""
        ...


class Dialogue(ABC):
    """The base of the methods, with what most of them have in common: no memory, no hand in the base optimizer's update."""

    @property
    def adaptive(self) -> bool:
        """Whether the number of evaluations depends on data."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """What must be there beside gradients: "names", "momentum", "loss", "samples" (each one's loss) or "subspace"."""
        return frozenset()

    @property
    def changes_update(self) -> bool:
        """Whether `update` is called."""
        return False

    @property
    def cost(self) -> float | None:
        """Gradient evaluations a step, in the mean over many; None where it is not known before."""
        return None

    def evaluations(self, steps: int) -> float | None:
        """Gradient evaluations in the first so many steps, in the mean; None where it is not known before."""
        return None if self.cost is None else self.cost * steps

    def init(self, vectors: Vector) -> State:
        """An empty state."""
        del vectors
        return State()

    @abstractmethod
    def passes(self, state: State) -> Passes:
        """The dialogue of one step: yields places, receives evaluations, returns the direction to step along."""

    def with_rho(self, rho: float) -> Self:
        """The same method with another rho."""
        return replace(cast(Any, self), rho=rho)

    def update(self, state: State, weights: Vector, update: Vector) -> Vector:
        """What is added to `weights`, those before the step, in place of `update`, the base optimizer's change of them.

        Called after the base optimizer's step where `changes_update` is True.
        """
        del state, weights
        return update


class Twice(Dialogue):
    """The base of methods that evaluate here and there, and without rho only here."""

    rho: float

    @property
    def cost(self) -> float:
        """Two evaluations, or one without rho."""
        return 2.0 if self.rho else 1.0


def drive(method: Method, evaluate: Callable[[At], Evaluation], state: State) -> Vector:
    """Run one dialogue with a pure function in place of the optimizer, and return the direction.

    `evaluate` answers a request; `at.displacement()` is the place relative to the weights. `state` is changed as the
    method changes it, `state.step` is left to the caller. For theory, and for tests in float64 on losses with known
    answers.
    """
    dialogue = method.passes(state)
    try:
        request = next(dialogue)
        while True:
            request = dialogue.send(evaluate(request))
    except StopIteration as finished:
        return finished.value
