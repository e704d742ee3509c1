"""The top eigenvector from the gradients that a step of Eigen-SAM has anyway, or nearly."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.eigenvectors import EIGENVECTOR, NEXT_REFRESH, SAME_IN_EVALUATION, gradient_in_evaluation_mode
from flatwise.methods.products import RELATIVE, difference_length, quotient, where_present
from flatwise.vectors import Scalar, Vector

AVERAGE, SIDE = "free_average", "free_side"

# The share of the past in the average: of products along the displacement, which are noisy with the step's batch and gradient;
# and of probes, which are rare and clean. EVERY is what a tenth of SAM's cost pays for. LENGTH is relative to the norm of the
# weights. Chosen by |cos| with exact eigenvectors on the networks of docs/free-eigenvector.md; half or twice of LENGTH was worse.
MEMORY, PROBE_MEMORY = 0.9, 0.5
EVERY = 5
LENGTH = 5e-3


def remember(state: State, like: Vector) -> State:
    """Make room in the state."""
    state.vectors[AVERAGE] = V.zeros_like(like)
    state.numbers[SIDE] = 1.0
    return state


def learns(state: State) -> bool:
    """Whether the difference of the step's two gradients is a product with the wanted Hessian, that of evaluation mode."""
    return bool(state.numbers[SAME_IN_EVALUATION])


def learn(base: Vector, there: Vector, length: Scalar, state: State) -> None:
    """Take up the gradients at the weights and at a distance of `length`; `base` is overwritten."""
    V.scale_(base, -1.0)
    V.add_(base, there)
    V.scale_(base, V.reciprocal(torch.as_tensor(length)))
    _take_up(state.on_perturbed(base), MEMORY, state)


def look(here: Evaluation, state: State) -> Generator[At, Evaluation, None]:
    """Before the displacement: see at first whether evaluation mode differs; where it does, probe when it is time."""
    if not state.numbers[NEXT_REFRESH]:
        base = yield from gradient_in_evaluation_mode(here, state, first=True)
        if not learns(state):
            _take_up(base, 0.0, state)
    elif learns(state) or state.step < state.numbers[NEXT_REFRESH]:
        return
    else:
        yield from _probe(here, state)
    state.numbers[NEXT_REFRESH] = float(state.step + EVERY)


def _probe(here: Evaluation, state: State) -> Generator[At, Evaluation, None]:
    """One gradient in evaluation mode a little along the vector, by turns on either side of the weights.

    It needs no second one at the weights: the training gradient is close to it, and what is left of the difference changes
    its sign with the side, so that the average takes it out.
    """
    base = state.on_perturbed(here.gradient)
    length = state.numbers[SIDE] * _probe_length(state, base)
    state.numbers[SIDE] *= -1.0
    there = yield At.displaced(where_present(state.vectors[EIGENVECTOR], base), length, probe=True)
    product = state.on_perturbed(quotient(there.release(), base, length))
    _take_up(product, PROBE_MEMORY, state)


def _probe_length(state: State, base: Vector) -> Tensor:
    return difference_length(state, base, max(1.0, LENGTH / (RELATIVE * math.sqrt(V.epsilon(base)))))


def _take_up(product: Vector, memory: float, state: State) -> None:
    """The running average of products, each with the sign that agrees with the vector known; its direction is the vector."""
    agreement = V.dot(product, state.vectors[EIGENVECTOR])
    sign = torch.where(agreement < 0, -torch.ones_like(agreement), torch.ones_like(agreement))
    average = V.scale(product, (1 - memory) * sign)
    V.accumulate_(average, state.vectors[AVERAGE], memory)
    state.vectors[AVERAGE], state.vectors[EIGENVECTOR] = average, V.unit(average)
