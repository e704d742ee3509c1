"""Eigen-SAM: the displacement turned towards the top eigenvector of the Hessian."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, positive_integer
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State
from flatwise.methods.ritz import Search, leading_ritz_vector
from flatwise.vectors import Vector

EIGENVECTOR = "eigenvector"
SAME_IN_EVALUATION = "same_in_evaluation"

# The first search starts at the gradient, which lies near the top eigenspaces, with this share of noise against the case of a
# gradient that has no part in the wanted vector. Later searches start at the vector known, with this share of gradient.
SHARE = 0.1


@dataclass(frozen=True)
class EigenSAM(Dialogue):
    """Eigen-SAM (arXiv 2501.12666): the gradient at `w + rho * (u + alpha * sign(<g, v>) * (v - <v, u> u))`, `u = g / |g|`.

    `v` is the unit eigenvector of the largest (algebraic) eigenvalue of the Hessian of the current mini-batch in evaluation
    mode, refreshed at global steps 0, every, 2 * every ... and stale in between. The displacement is not renormalised: its
    norm is `rho * sqrt(1 + alpha^2 (1 - <u, v>^2))`.

    A refresh takes `iterations` Hessian-vector products, each a difference of gradients. The power iteration of the paper
    follows the eigenvalue of largest magnitude, also a negative one; here the same products span a Krylov space, from which
    the largest Ritz pair is taken, and the last product serves for a power step on it. It is warm-started by the previous
    vector, and is part of the checkpoint.

    Two evaluations a step. A refresh adds `iterations`, and one for the gradient in evaluation mode unless the first refresh
    found it equal to the training gradient (no BatchNorm, no dropout). At a refresh the host waits for the device
    a few times more, and `iterations` vectors are kept meanwhile.

    Args:
        rho: the radius; >= 0, and 0 is the base optimizer at one evaluation.
        alpha: the share of the eigenvector; >= 0, and 0 is SAM. The paper tunes it over 0.05, 0.1, 0.2.
        every: steps between refreshes; >= 1.
        iterations: Hessian-vector products a refresh; >= 1.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    alpha: float = 0.2
    every: int = 100
    iterations: int = 5

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("alpha", self.alpha)
        positive_integer("every", self.every)
        positive_integer("iterations", self.iterations)

    def init(self, vectors: Vector) -> State:
        """The eigenvector is zero until the first refresh; all that a checkpoint will hold is there from the start."""
        return State(vectors={EIGENVECTOR: V.zeros_like(vectors)}, numbers={SAME_IN_EVALUATION: 0.0} | asdict(Search()))

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, refresh the eigenvector when it is time, evaluate along the tilted gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        if self.alpha and state.step % self.every == 0:
            yield from self._refresh(here, state)
        there = yield self._tilted(here.release(), state)
        return there.release()

    def _tilted(self, gradient: Vector, state: State) -> At:
        """The request along `u + alpha * sign(<g, v>) * (v - <v, u> u)`, which is written into `gradient`."""
        if not self.alpha:
            return At.along(gradient, self.rho)
        gradient = state.on_perturbed(gradient)
        vector = _where_present(state.vectors[EIGENVECTOR], gradient)
        inverse_norm = V.reciprocal(V.norm(gradient))
        product = V.dot(gradient, vector)
        sign, c = torch.sign(product), product * inverse_norm
        V.scale_(gradient, (1 - self.alpha * sign * c) * inverse_norm)
        V.add_(gradient, vector, self.alpha * sign)
        stretch = (1 + sign.abs() * self.alpha**2 * (1 - c**2)).sqrt()
        state.notes["alignment_gradient_tracked"] = c.abs()
        state.notes["alignment_displacement_tracked"] = (c.abs() + self.alpha * (1 - c**2)) / stretch
        return At.along(gradient, self.rho * stretch)

    def _refresh(self, here: Evaluation, state: State) -> Generator[At, Evaluation, None]:
        base = yield from _gradient_in_evaluation_mode(here, state)
        known = state.vectors[EIGENVECTOR]
        if state.step == 0:
            start = _mixture(base, _where_present(V.random_like(known, state.seed), base))
        else:
            start = _mixture(_where_present(known, base), base)
        search = Search.recalled(state.numbers)
        vector = yield from leading_ritz_vector(start, base, state, self.iterations, search)
        state.vectors[EIGENVECTOR] = _zero_where_absent(vector, known)
        state.numbers |= asdict(search)
        state.notes |= {"rayleigh_quotient": search.value, "eigenvector_residual": search.residual}


def _gradient_in_evaluation_mode(here: Evaluation, state: State) -> Generator[At, Evaluation, Vector]:
    if state.numbers.get(SAME_IN_EVALUATION):
        return state.on_perturbed(here.gradient)
    base = yield At.weights(probe=True)
    if state.step == 0:
        state.numbers[SAME_IN_EVALUATION] = float(here.repeatable and _equal(here.gradient, base.gradient))
    return state.on_perturbed(base.release())


def _equal(a: Vector, b: Vector) -> Tensor:
    """Whether two gradients are the same but for the order of summation."""
    return V.norm(V.add(a, b, -1.0)) <= 10 * V.epsilon(a) * V.norm(a)


def _mixture(much: Vector, little: Vector) -> Vector:
    return V.add(V.unit(much), V.unit(little), SHARE)


def _where_present(vector: Vector, like: Vector) -> Vector:
    """The vector with None where `like` has None: a parameter without gradient takes no part."""
    return V.restrict(vector, [t is not None for t in like])


def _zero_where_absent(vector: Vector, like: Vector) -> Vector:
    return [z if v is None else v for v, z in zip(vector, V.zeros_like(like), strict=True)]
