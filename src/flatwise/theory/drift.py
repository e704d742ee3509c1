"""The effective drift of any method, read off its generator."""

from __future__ import annotations

from collections.abc import Iterator

from flatwise import vectors as V
from flatwise.methods import At, Evaluation, Method, State, drive
from flatwise.objective import Objective
from flatwise.vectors import Vector

NO_MOMENTUM = (
    "this method goes along the base optimizer's momentum, and there is none here: pass a state that has it, "
    "state = method.init(objective.weights); state.momentum = [...], a tensor for each of the weights"
)
NO_SAMPLES = (
    "this method chooses among the losses of single samples, which an objective does not show: its drift is known only "
    "where all samples count (ESAM's gamma at 1)"
)


def drift(method: Method, objective: Objective, state: State | None = None) -> Vector:
    """Minus the direction that the method would step along, in the mean over the objective's batches.

    Each batch has a dialogue of its own, from the same state; probes are evaluated in the objective's mode like
    everything else. What a base optimizer or the method makes of the direction afterwards is left out. Measuring
    changes nothing.

    Args:
        method: any method, for parameters that are all displaced alike.
        objective: the loss; its batches are the mini-batches.
        state: the method's memory, such as a tracked eigenvector; default: that of the first step. It is not changed.
            For `MomentumSAM` it has the momentum.

    Returns:
        The mean of the directions over batches, weighted by their samples, times -1.

    Raises:
        ValueError: the method goes by momentum and the state has none, or by the losses of single samples.
    """
    total, weight = V.zeros_like(objective.weights), 0.0
    for direction, share in directions(method, objective, state):
        V.add_(total, direction, -share)
        weight += share
    V.scale_(total, 1 / weight)
    return total


def directions(method: Method, objective: Objective, state: State | None = None) -> Iterator[tuple[Vector, float]]:
    """The direction of each batch, and what the batch counts."""
    known = _known(method, objective, state)
    for batch in list(objective.data):
        share = objective.counts(batch)
        own = known.copy()
        own.weights = objective.weights
        yield drive(method, _Answers(objective.on([batch])), own), share


def _known(method: Method, objective: Objective, state: State | None) -> State:
    """A copy of the state, or that of the first step, with all that the method looks at."""
    known = method.init(objective.weights) if state is None else state.copy()
    needs: frozenset[str] = getattr(method, "needs", frozenset())
    if "momentum" in needs and not any(m is not None for m in known.momentum):
        raise ValueError(NO_MOMENTUM)
    if "samples" in needs:
        raise ValueError(NO_SAMPLES)
    known.names = known.names or _names(objective)
    return known


def _names(objective: Objective) -> list[str]:
    names = {id(p): name for name, p in objective.model.named_parameters()}
    return [names[id(p)] for p in objective.parameters()]


class _Answers:
    """Evaluations of the loss of one batch, at places relative to the weights."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, at: At) -> Evaluation:
        displacement = at.displacement()
        if displacement is None:
            return self._evaluation()
        with self._objective.displaced() as place:
            place.to(displacement, 1.0)
            return self._evaluation()

    def _evaluation(self) -> Evaluation:
        loss, gradient = self._objective.value_and_gradient()
        return Evaluation(loss, gradient)
