"""Methods that use the top eigenvector of the Hessian: in the displacement, in the loss, in the direction."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import torch

from flatwise import vectors as V
from flatwise.methods import eigenvectors, free
from flatwise.methods.checks import non_negative, positive_integer
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State
from flatwise.methods.eigenvectors import Source, check_source
from flatwise.methods.products import second_difference_length, where_present
from flatwise.vectors import Vector


@dataclass(frozen=True)
class EigenSAM(Dialogue):
    """Eigen-SAM (arXiv 2501.12666): the gradient at `w + rho * (u + alpha * sign(<g, v>) * (v - <v, u> u))`, `u = g / |g|`.

    `v` is the unit eigenvector of the largest (algebraic) eigenvalue of the Hessian of the current mini-batch in
    evaluation mode, refreshed at global steps 0, every, 2 * every ... and stale in between. The displacement is not
    renormalised: its norm is `rho * sqrt(1 + alpha^2 (1 - <u, v>^2))`.

    Where `v` comes from, each product being a difference of gradients:

    - "ritz": a refresh takes `iterations` Hessian-vector products that span a Krylov space, from which the largest Ritz
      pair is taken; the last product serves for a power step on it. Warm-started by the previous vector.
    - "power": power iteration as in the paper, which follows the eigenvalue of largest magnitude, also a negative one. It
      starts at the previous vector and a tenth of the gradient, at first at the gradient and a tenth of noise; in the
      official code at the previous vector alone, at first at noise.
    - "lanczos": the products of a refresh are spread over as many steps, each with that step's batch; the vector
      belongs to all of them, and `iterations` vectors more are remembered. A refresh that is due waits for the one
      before. With BatchNorm or dropout each product takes the gradient in evaluation mode, too.
    - a function, such as `flatwise.curvature.eigenspace(objective)`: the eigenvector of a whole data set, at the cost
      of finding it.
    - "free", recommended: a running average of products, each with another batch's Hessian, the last ten most. The
      difference of the step's own two gradients is such a product, at no cost. Where evaluation mode differs (BatchNorm,
      dropout) it is not, and every fifth step takes one gradient more, in evaluation mode. `every` and `iterations` are
      left out. Remembers one vector more, and keeps the first gradient through the second evaluation. It needs batches
      that differ: on a full batch the others are better.

    Two evaluations a step. A refresh adds `iterations`, and one for the gradient in evaluation mode unless the first
    refresh found it equal to the training gradient (no BatchNorm, no dropout). At a refresh the host waits for the
    device a few times more, and `iterations` vectors are kept meanwhile.

    Args:
        rho: the radius; >= 0, and 0 is the base optimizer at one evaluation.
        alpha: the share of the eigenvector; >= 0, and 0 is SAM. The paper tunes it over 0.05, 0.1, 0.2.
        every: steps between refreshes; >= 1.
        iterations: Hessian-vector products a refresh; >= 1. Left out where `source` is a function.
        source: where the eigenvector comes from: a name, or an `Eigenspace`.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    alpha: float = 0.2
    every: int = 100
    iterations: int = 5
    source: Source | Literal["free"] = "ritz"

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("alpha", self.alpha)
        if self.source == "free":
            _check_no_refreshes(self.every, self.iterations)
        else:
            _check_refreshes(self.every, self.iterations, self.source, "free")

    @property
    def cost(self) -> float:
        """Two evaluations, and the products of a refresh; with BatchNorm or dropout `1 / every` more (free: 1 / 5)."""
        return _cost(self, bool(self.alpha), 2.0)

    def init(self, vectors: Vector) -> State:
        """The eigenvector is zero until the first refresh."""
        if self.source == "free":
            return free.remember(eigenvectors.memory(vectors, "ritz", self.iterations), vectors)
        return eigenvectors.memory(vectors, self.source, self.iterations)

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights, refresh the eigenvector when it is time, evaluate along the tilted gradient."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        if self.alpha:
            yield from self._look(here, state)
        learns = self.source == "free" and bool(self.alpha) and free.learns(state)
        base = V.clone(here.gradient) if learns else []
        request = self._tilted(here.release(), state)
        there = yield request
        if learns:
            free.learn(base, there.gradient, request.length, state)
        return there.release()

    def _look(self, here: Evaluation, state: State) -> Generator[At, Evaluation, None]:
        if self.source == "free":
            yield from free.look(here, state)
        else:
            yield from eigenvectors.look(here, state, self.source, self.every, self.iterations)

    def _tilted(self, gradient: Vector, state: State) -> At:
        """The request along `u + alpha * sign(<g, v>) * (v - <v, u> u)`, which is written into `gradient`."""
        if not self.alpha:
            return At.along(gradient, self.rho)
        gradient = state.on_perturbed(gradient)
        vector = where_present(state.vectors[eigenvectors.EIGENVECTOR], gradient)
        inverse_norm = V.reciprocal(V.norm(gradient))
        product = V.dot(gradient, vector)
        sign, c = torch.sign(product), product * inverse_norm
        V.scale_(gradient, (1 - self.alpha * sign * c) * inverse_norm)
        V.add_(gradient, vector, self.alpha * sign)
        across = sign.abs() * (1 - c**2)  # nothing is added without a vector, or where it is orthogonal to the gradient
        stretch = (1 + self.alpha**2 * across).sqrt()
        state.notes["alignment_gradient_tracked"] = c.abs()
        state.notes["alignment_displacement_tracked"] = (c.abs() + self.alpha * across) / stretch
        return At.along(gradient, self.rho * stretch)


@dataclass(frozen=True)
class EigenvaluePenalty(Dialogue):
    """Explicit eigenvalue penalty: the loss `f + rho^2 / 2 * lambda_1`. A control for Eigen-SAM.

    That is the third-order term of SAM whose displacement is along the top eigenvector `v`, without the others. The
    gradient of the eigenvalue is the second difference of gradients along `v`,
    `(g(w + h v) - 2 g(w) + g(w - h v)) / h^2` (a derivation of ours, not of a paper, and so are the defaults). Three
    evaluations a step, and the refreshes of the eigenvector as in `EigenSAM`.

    It is the gradient of the eigenvalue only where evaluation mode and training mode agree: without BatchNorm and dropout.
    With them `v` is of evaluation mode and the three evaluations are in training mode, so that the penalty descended is
    `v'Hv` with the Hessian of training mode and `v` held fixed, the eigenvalue of neither.

    Args:
        rho: the weight of the eigenvalue is half its square; >= 0, and 0 is the base optimizer at one evaluation.
        every: steps between refreshes; >= 1.
        iterations: Hessian-vector products a refresh; >= 1.
        source: as in `EigenSAM`, but not "free", which learns from Eigen-SAM's own displacement.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    every: int = 10
    iterations: int = 5
    source: Source = "ritz"

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        _check_refreshes(self.every, self.iterations, self.source)

    @property
    def cost(self) -> float:
        """Three evaluations, and the products of a refresh; with BatchNorm or dropout `1 / every` more."""
        return _cost(self, True, 3.0)

    def init(self, vectors: Vector) -> State:
        """The eigenvector is zero until the first refresh."""
        return eigenvectors.memory(vectors, self.source, self.iterations)

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights and on both sides along the eigenvector, and add the second difference."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        vector = yield from eigenvectors.look(here, state, self.source, self.every, self.iterations)
        vector = state.on_perturbed(where_present(vector, here.gradient))
        length = second_difference_length(state, here.gradient)
        weight = self.rho**2 / (2 * length**2)
        above = yield At.offset(vector, length)
        total = above.release()
        below = yield At.offset(vector, -length)
        V.accumulate_(total, below.release())
        V.accumulate_(total, here.gradient, -2.0)
        V.scale_(total, weight)
        V.accumulate_(total, here.release())
        return total


@dataclass(frozen=True)
class XSAM(Dialogue):
    """X-SAM (arXiv 2601.10251), made independent of the sign of the eigenvector: SAM's gradient `h` less `alpha * <h, v> v`.

    The paper's rule, `h - alpha * |<h, v>| v`, damps the component along the top eigenvector `v` or amplifies it
    depending on the sign that a solver gave `v`. Here `v` is taken with the sign that agrees with `h`, so that the
    component becomes `1 - alpha` times what it was. And `h` keeps its norm: the official code steps along a unit
    vector. Two evaluations a step, and the refreshes of the eigenvector as in `EigenSAM`.

    Args:
        rho: the norm of the displacement; >= 0, and 0 is the base optimizer at one evaluation.
        alpha: how much of the component is taken out; in [0, 2] in the paper; >= 0, and 0 is SAM.
        every: steps between refreshes; >= 1.
        iterations: Hessian-vector products a refresh; >= 1.
        source: as in `EigenSAM`, but not "free", which learns from Eigen-SAM's own displacement.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.05
    alpha: float = 0.2
    every: int = 5
    iterations: int = 5
    source: Source = "ritz"

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("alpha", self.alpha)
        _check_refreshes(self.every, self.iterations, self.source)

    @property
    def cost(self) -> float:
        """Two evaluations, and the products of a refresh; with BatchNorm or dropout `1 / every` more."""
        return _cost(self, bool(self.alpha), 2.0)

    def init(self, vectors: Vector) -> State:
        """The eigenvector is zero until the first refresh."""
        return eigenvectors.memory(vectors, self.source, self.iterations)

    def passes(self, state: State) -> Passes:
        """Evaluate as SAM does, and take part of the second gradient along the eigenvector out."""
        here = yield At.weights()
        if not state.displaces(self.rho):
            return here.release()
        vector = state.vectors[eigenvectors.EIGENVECTOR]
        if self.alpha:
            vector = yield from eigenvectors.look(here, state, self.source, self.every, self.iterations)
        there = yield At.along(here.release(), self.rho)
        direction = there.release()
        V.add_(direction, vector, -self.alpha * V.dot(direction, vector))
        return direction


def _check_no_refreshes(every: object, iterations: object) -> None:
    if (every, iterations) != (EigenSAM.every, EigenSAM.iterations):
        raise ValueError(
            "every and iterations have no effect with source 'free', which has no refreshes; leave them out"
        )


def _check_refreshes(every: object, iterations: object, source: object, *more: str) -> None:
    positive_integer("every", every)
    positive_integer("iterations", iterations)
    check_source(source, *more)
    if callable(source) and iterations != EigenSAM.iterations:
        raise ValueError(
            "iterations has no effect with a function as source, which goes by its own tolerance; leave it out"
        )


def _cost(method: EigenSAM | EigenvaluePenalty | XSAM, looks: bool, alone: float) -> float:
    if not method.rho:
        return 1.0
    if not looks or method.source == "free":
        return alone
    return alone + eigenvectors.cost(method.source, method.every, method.iterations)
