"""The top eigenvector from the gradients that a step of Eigen-SAM has anyway, or nearly."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.eigenvectors import EIGENVECTOR, NEXT_REFRESH, SAME_IN_EVALUATION, gradient_in_evaluation_mode
from flatwise.methods.products import RELATIVE, difference_length, quotient, where_present, zero_where_absent
from flatwise.vectors import Scalar, Vector

PRODUCTS, SIDE = "free_products", "free_side"

# MEMORY is the share of the past in the average of products along the displacement, which are noisy with the step's batch and
# gradient. EVERY is what a tenth of SAM's cost pays for. LENGTH is relative to the norm of the weights. Chosen by |cos| with
# exact eigenvectors on the networks of docs/free-eigenvector.md; half or twice of LENGTH was worse.
MEMORY = 0.9
EVERY = 5
LENGTH = 5e-3


def remember(state: State, like: Vector) -> State:
    """Make room in the state."""
    state.vectors[PRODUCTS] = V.zeros_like(like)
    state.numbers[SIDE] = 1.0
    return state


def learns(state: State) -> bool:
    """Whether the difference of the step's two gradients is a product with the wanted Hessian, that of evaluation mode."""
    return bool(state.numbers[SAME_IN_EVALUATION])


def learn(base: Vector, there: Vector, length: Scalar, state: State) -> None:
    """Take up the gradients at the weights and at a distance of `length`; `base` is overwritten.

    What is averaged are products, each with the sign that agrees with the vector known; the average's direction is the vector.
    """
    V.scale_(base, -1.0)
    V.add_(base, there)
    product = state.on_perturbed(base)
    agreement = V.dot(product, state.vectors[EIGENVECTOR])
    sign = torch.where(agreement < 0, -torch.ones_like(agreement), torch.ones_like(agreement))
    average = V.scale(product, (1 - MEMORY) * sign * V.reciprocal(torch.as_tensor(length)))
    V.accumulate_(average, state.vectors[PRODUCTS], MEMORY)
    state.vectors[PRODUCTS], state.vectors[EIGENVECTOR] = average, V.unit(average)


def look(here: Evaluation, state: State) -> Generator[At, Evaluation, None]:
    """Before the displacement: see at first whether evaluation mode differs; where it does, probe when it is time."""
    if not state.numbers[NEXT_REFRESH]:
        base = yield from gradient_in_evaluation_mode(here, state, first=True)
        if not learns(state):
            state.vectors[EIGENVECTOR] = zero_where_absent(V.unit(base), state.vectors[EIGENVECTOR])
    elif learns(state) or state.step < state.numbers[NEXT_REFRESH]:
        return
    else:
        yield from _probe(here, state)
    state.numbers[NEXT_REFRESH] = float(state.step + EVERY)


def _probe(here: Evaluation, state: State) -> Generator[At, Evaluation, None]:
    """A step of power iteration: one gradient in evaluation mode, a little along the vector, by turns on either side.

    It needs no second one at the weights. The training gradient is close to that, and what is left of the difference changes its
    sign with the side, so that the sum of the last two products is without. That sum has no part along negative eigenvalues
    either, under which products change their sign.
    """
    base, known = state.on_perturbed(here.gradient), state.vectors[EIGENVECTOR]
    length = state.numbers[SIDE] * _probe_length(state, base)
    state.numbers[SIDE] *= -1.0
    there = yield At.displaced(where_present(known, base), length, probe=True)
    product = zero_where_absent(state.on_perturbed(quotient(there.release(), base, length)), known)
    both = V.add(product, state.vectors[PRODUCTS])
    state.vectors[PRODUCTS], state.vectors[EIGENVECTOR] = product, V.unit(both)


def _probe_length(state: State, base: Vector) -> Tensor:
    return difference_length(state, base, max(1.0, LENGTH / (RELATIVE * math.sqrt(V.epsilon(base)))))
