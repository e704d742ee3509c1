"""Where a method's tracked eigenvector comes from.

It is the unit eigenvector of the largest eigenvalue of the Hessian, zero before it is first known, and part of the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.checks import one_of
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.power import power_iteration
from flatwise.methods.products import where_present, zero_where_absent
from flatwise.methods.ritz import Search, leading_ritz_vector
from flatwise.methods.stochastic_lanczos import StochasticLanczos, is_open
from flatwise.vectors import Vector

EIGENVECTOR = "eigenvector"
SAME_IN_EVALUATION = "same_in_evaluation"
NEXT_REFRESH = "next_refresh"

# The first search starts at the gradient, which lies near the top eigenspaces, with this share of noise against the case of a
# gradient that has no part in the wanted vector. Later searches start at the vector known, with this share of gradient. So does
# the power iteration, which in the official code of Eigen-SAM begins with noise and goes on from the vector known alone.
SHARE = 0.1

Eigenspace: TypeAlias = Callable[[Sequence[Vector], Vector], Sequence[Vector]]
"""From the top eigenvectors as they were, zero where they are not known yet, and the weights that they belong to, the
optimizer's parameters in its order, to as many orthonormal ones as they are now."""

Name = Literal["ritz", "power", "lanczos"]
Source: TypeAlias = Name | Eigenspace


def check_source(source: object, *more: str) -> None:
    """Refuse anything but a name, one of `more` names, or a function."""
    if not callable(source):
        one_of(
            "source",
            source,
            (*get_args(Name), *more),
            " or a function, such as flatwise.curvature.eigenspace(objective)",
        )


def memory(vectors: Vector, source: Source, iterations: int) -> State:
    """The state before the first look: all that a checkpoint will hold is there from the start."""
    numbers = {SAME_IN_EVALUATION: 0.0, NEXT_REFRESH: 0.0} | asdict(Search())
    state = State(vectors={EIGENVECTOR: V.zeros_like(vectors)}, numbers=numbers)
    if source == "lanczos":
        StochasticLanczos(iterations).remember(state, vectors)
    return state


def cost(source: Source, every: int, iterations: int) -> float:
    """Evaluations a step, without those of gradients in evaluation mode."""
    if callable(source):
        return 0.0
    return min(1.0, iterations / every) if source == "lanczos" else iterations / every


def look(
    here: Evaluation, state: State, source: Source, every: int, iterations: int
) -> Generator[At, Evaluation, Vector]:
    """The tracked vector, refreshed when it is time: at steps 0, every, 2 * every ... counted from the first look."""
    first = not state.numbers[NEXT_REFRESH]
    due = state.step >= state.numbers[NEXT_REFRESH] and not is_open(state)
    if due:
        state.numbers[NEXT_REFRESH] = float(state.step + every)
    if callable(source):
        if due:
            (found,) = ask("source", source, [state.vectors[EIGENVECTOR]], state)
            state.vectors[EIGENVECTOR] = V.unit(found)
    elif source == "lanczos":
        yield from _continued(here, state, StochasticLanczos(iterations), due, first)
    elif due:
        yield from _refreshed(here, state, source, iterations, first)
    return state.vectors[EIGENVECTOR]


def ask(name: str, function: Eigenspace, known: list[Vector], state: State) -> list[Vector]:
    """The eigenvectors that a function finds, zero where it has None."""
    with torch.enable_grad():
        found = list(function(known, state.weights))
    if len(found) != len(known):
        raise ValueError(f"{name} must return as many vectors as it is given, {len(known)}, got {len(found)}")
    return [zero_where_absent(vector, before) for vector, before in zip(found, known)]


def _refreshed(
    here: Evaluation, state: State, source: Name, iterations: int, first: bool
) -> Generator[At, Evaluation, None]:
    base = yield from gradient_in_evaluation_mode(here, state, first)
    search = Search.recalled(state.numbers)
    find = power_iteration if source == "power" else leading_ritz_vector
    vector = yield from find(_start(base, state, first), base, state, iterations, search)
    _know(vector, search, state)


def _continued(
    here: Evaluation, state: State, lanczos: StochasticLanczos, due: bool, first: bool
) -> Generator[At, Evaluation, None]:
    """One product in each step from a refresh on, until there are enough."""
    if not (due or is_open(state)):
        return
    search = Search.recalled(state.numbers)
    base = yield from gradient_in_evaluation_mode(here, state, first)
    if due:
        lanczos.begin(_start(base, state, first), state)
    vector = yield from lanczos.product(base, state, search)
    if vector is not None:
        _know(vector, search, state)


def _know(vector: Vector, search: Search, state: State) -> None:
    state.vectors[EIGENVECTOR] = zero_where_absent(vector, state.vectors[EIGENVECTOR])
    state.numbers |= asdict(search)
    state.notes |= {"rayleigh_quotient": search.value, "eigenvector_residual": search.residual}


def _start(base: Vector, state: State, first: bool) -> Vector:
    known = state.vectors[EIGENVECTOR]
    if first:
        return _mixture(base, where_present(V.random_like(known, state.seed), base))
    return _mixture(where_present(known, base), base)


def gradient_in_evaluation_mode(here: Evaluation, state: State, first: bool) -> Generator[At, Evaluation, Vector]:
    """The gradient at the weights in evaluation mode, on what is displaced; the first look finds out whether it is the same."""
    if state.numbers.get(SAME_IN_EVALUATION):
        return state.on_perturbed(here.gradient)
    base = yield At.weights(probe=True)
    if first:
        state.numbers[SAME_IN_EVALUATION] = float(here.repeatable and _equal(here.gradient, base.gradient))
    return state.on_perturbed(base.release())


def _equal(a: Vector, b: Vector) -> Tensor:
    """Whether two gradients are the same but for the order of summation."""
    return V.norm(V.add(a, b, -1.0)) <= 10 * V.epsilon(a) * V.norm(a)


def _mixture(much: Vector, little: Vector) -> Vector:
    return V.add(V.unit(much), V.unit(little), SHARE)
