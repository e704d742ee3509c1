"""A universal class of sharpness measures (arXiv 2406.03682): trace, determinant and Frobenius norm of the Hessian.

The loss is `f(w) + strength * rho^2 * phi(mean of psi(d))` over random points `t`, with
`d = (f(w + rho t) - f(w)) / rho^2`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.methods.checks import non_negative, positive, positive_integer, whole
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Passes, State
from flatwise.methods.noise import gaussian
from flatwise.vectors import Vector


class _Sharpness(Dialogue, ABC):
    """The gradient at the weights, and the strength times that of a sharpness seen from random points."""

    rho: float
    strength: float
    samples: int
    seed: int

    def __post_init__(self) -> None:
        non_negative("rho", self.rho)
        non_negative("strength", self.strength)
        positive_integer("samples", self.samples)
        whole("seed", self.seed)

    @property
    def cost(self) -> float:
        """One evaluation at the weights, and one for each sample."""
        return 1.0 + self.samples if self.rho and self.strength else 1.0

    def passes(self, state: State) -> Passes:
        """Evaluate at the weights and at random points around them, and step along the gradient of the whole loss."""
        here = yield At.weights()
        if not (self.strength and state.displaces(self.rho)):
            return here.release()
        sharpness = yield from self._gradient(here, state)
        direction = here.release()
        V.accumulate_(direction, sharpness, self.strength)
        return direction

    @abstractmethod
    def _gradient(self, here: Evaluation, state: State) -> Generator[At, Evaluation, Vector]:
        """That of the sharpness times `rho^2`."""


class _Universal(_Sharpness):
    """`strength * phi'(mean of psi(d)) * mean of psi'(d) * (g(w + rho t) - g(w))`."""

    def _gradient(self, here: Evaluation, state: State) -> Generator[At, Evaluation, Vector]:
        total: Vector = [None] * len(state.weights)
        value = slopes = torch.zeros((), device=here.loss.device)
        for noise in gaussian(state, self.seed, self.samples):
            there = yield At.offset(self._point(noise), self.rho)
            psi, slope = self._psi((there.loss - here.loss) / self.rho**2)
            value, slopes = value + psi / self.samples, slopes + slope
            V.accumulate_(total, there.release(), slope)
        V.accumulate_(total, here.gradient, -slopes)
        V.scale_(total, self._phi_slope(value) / self.samples)
        return total

    @abstractmethod
    def _point(self, noise: Vector) -> Vector:
        """A sample of the measure, made of a standard normal one."""

    @abstractmethod
    def _psi(self, rise: Tensor) -> tuple[Tensor, Tensor]:
        """`psi` and its derivative."""

    @abstractmethod
    def _phi_slope(self, value: Tensor) -> Tensor:
        """The derivative of `phi`."""


@dataclass(frozen=True)
class TraceSAM(_Universal):
    """Trace-SAM (arXiv 2406.03682): `f + strength * (mean of f(w + rho t) - f)`, `t` uniform on the unit sphere.

    Around a minimum that is `strength * rho^2 / 2` times the mean eigenvalue. The official code leaves out the
    normalisation: its rho of 0.01 is a displacement of `0.01 * sqrt(number of weights)`. Here rho is the norm of the
    displacement. `1 + samples` evaluations a step; the first gradient is kept.

    Args:
        rho: the norm of each displacement; >= 0, and 0 is the base optimizer at one evaluation. The default is ours.
        strength: the weight of the sharpness, lambda in the paper; >= 0, and 1 is the mean of the perturbed losses
            alone.
        samples: random points; >= 1.
        seed: of the random points; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 1.0
    strength: float = 1.0
    samples: int = 1
    seed: int = 0

    def _point(self, noise: Vector) -> Vector:
        V.scale_(noise, V.reciprocal(V.norm(noise)))
        return noise

    def _psi(self, rise: Tensor) -> tuple[Tensor, Tensor]:
        return rise, torch.ones_like(rise)

    def _phi_slope(self, value: Tensor) -> Tensor:
        return torch.ones_like(value)


@dataclass(frozen=True)
class DetSAM(_Universal):
    """Det-SAM (arXiv 2406.03682): `psi(d) = exp(-d / 2)`, `phi(x) = 1 / x^2`, `t` uniform in a cube around the weights.

    With `t` over the whole space the mean of `psi` is, but for a constant, one over the root of the determinant of the
    Hessian. Gradients are weighted by up to `exp(d)`: a rho of which the square is much smaller than the rises of the
    loss makes the direction very long. `1 + samples` evaluations a step; the first gradient is kept.

    Args:
        rho: what the points of the cube are multiplied by; >= 0, and 0 is the base optimizer at one evaluation.
        strength: the weight of the sharpness, lambda in the paper; >= 0.
        samples: random points; >= 1.
        half_width: of the cube; > 0.
        seed: of the random points; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 1.0
    strength: float = 1.0
    samples: int = 1
    half_width: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("half_width", self.half_width)

    def _point(self, noise: Vector) -> Vector:
        return V.elementwise(self._uniform, noise)

    def _uniform(self, normal: Tensor) -> Tensor:
        return self.half_width * torch.erf(normal / math.sqrt(2))

    def _psi(self, rise: Tensor) -> tuple[Tensor, Tensor]:
        psi = torch.exp(-rise / 2)
        return psi, -psi / 2

    def _phi_slope(self, value: Tensor) -> Tensor:
        return -2 / value**3


@dataclass(frozen=True)
class FrobSAM(_Sharpness):
    """Frob-SAM (arXiv 2406.03682): `f + strength / (2 rho^2)` times the variance of `f(w + rho t)`, `t` standard normal.

    At a minimum that is `strength * rho^2 / 4` times the squared Frobenius norm of the Hessian. `1 + samples`
    evaluations a step; the first gradient and two sums are kept.

    Args:
        rho: the standard deviation of the noise on each weight; >= 0, and 0 is the base optimizer at one evaluation.
        strength: lambda in the paper; >= 0.
        samples: random points; >= 2.
        seed: of the random points; >= 0.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    rho: float = 0.005
    strength: float = 0.005
    samples: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise ValueError("samples must be at least 2, got 1: the variance of one loss is not known")

    def _gradient(self, here: Evaluation, state: State) -> Generator[At, Evaluation, Vector]:
        weighted: Vector = [None] * len(state.weights)
        total: Vector = [None] * len(state.weights)
        rises = torch.zeros((), device=here.loss.device)
        for noise in gaussian(state, self.seed, self.samples):
            there = yield At.offset(noise, self.rho)
            rise = there.loss - here.loss  # a variance does not change by a shift, but is rounded less
            rises = rises + rise
            gradient = there.release()
            V.accumulate_(weighted, gradient, rise)
            V.accumulate_(total, gradient)
        V.accumulate_(weighted, total, -rises / self.samples)
        V.scale_(weighted, 1 / (self.rho**2 * (self.samples - 1)))
        return weighted
