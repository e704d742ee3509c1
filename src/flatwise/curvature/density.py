"""The spectral density of an operator by stochastic Lanczos quadrature (arXiv 1901.10159; Ubaru, Chen and Saad, SIMAX 2017)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.blocks import random_block
from flatwise.curvature.checks import check_count
from flatwise.curvature.estimate import Estimate, mean_of
from flatwise.curvature.krylov import Krylov
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Record


@dataclass(frozen=True)
class SpectralDensity:
    """How the eigenvalues of an operator are distributed: a few weighted points for each random vector.

    Attributes:
        nodes: eigenvalues of the projected operators [probes, steps], ascending in each row.
        weights: the share of the spectrum that each stands for [probes, steps]; every row has the sum 1.
        size: the number of eigenvalues.
        products: how many products with the operator it took.
        record: how the operator computes products: engine, precision, data, step. None where the operator has none.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    products: int
    record: Record | None = None

    def mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """The mean of `function` over all eigenvalues.

        The quadrature itself is exact for polynomials of degree below `2 * steps`; the random vectors leave the standard error.
        """
        return replace(mean_of((function(self.nodes) * self.weights).sum(1), self.products), record=self.record)

    def at(self, points: Tensor, width: float | None = None) -> tuple[Tensor, Tensor]:
        """The density at `points` [m], each eigenvalue blurred by a Gaussian, and its standard error over the random vectors.

        Args:
            points: where.
            width: the standard deviation of the Gaussian, > 0; by default 1/100 of the spectrum's range, and at least
                1e-5 of its largest absolute value (1 where that is 0): less is rounding.

        Raises:
            ValueError: width is not above 0.
        """
        spread = self._default_width() if width is None else width
        if not spread > 0:
            raise ValueError(f"width must be above 0, got {width}")
        distance = (points.to(self.nodes)[:, None, None] - self.nodes) / spread
        bumps = torch.exp(-(distance**2) / 2) / (spread * math.sqrt(2 * math.pi))
        samples = (bumps * self.weights).sum(2)
        error = (
            samples.std(1) / math.sqrt(samples.shape[1]) if samples.shape[1] > 1 else torch.full_like(points, math.nan)
        )
        return samples.mean(1), error

    def below(self, value: float) -> Estimate:
        """The share of eigenvalues below a value."""
        return self.mean(lambda nodes: (nodes < value).to(nodes))

    def grid(self, points: int = 400) -> Tensor:
        """Points that cover the spectrum and a little more, in the dtype of the nodes: float32 would merge them where eigenvalues
        hardly differ."""
        margin = 5 * self._default_width()
        low, high = float(self.nodes.min()) - margin, float(self.nodes.max()) + margin
        return torch.linspace(low, high, points, dtype=self.nodes.dtype)

    def _default_width(self) -> float:
        span = float(self.nodes.max() - self.nodes.min())
        return max(span / 100, 1e-5 * float(self.nodes.abs().max())) or 1.0


def spectral_density(operator: Multiplies, probes: int = 8, steps: int = 64, *, seed: int = 0) -> SpectralDensity:
    """The spectral density of a symmetric operator, from `steps` Lanczos steps on each of `probes` random vectors.

    The eigenvalues of the tridiagonal matrix are the nodes of Gauss's quadrature, the squares of the first entries of its
    eigenvectors the weights. The Lanczos vectors are kept orthogonal, so no eigenvalue appears twice; `steps` Vectors are held.

    Args:
        operator: symmetric, such as a `hessian`, or anything else that `as_operator` takes.
        probes: random vectors, >= 1; standard errors need 2.
        steps: products for each of them, >= 1; the operator's size is enough.
        seed: of the random vectors.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors, or a number no integer.
        ValueError: a number below 1, or an operator that returns NaN or infinity.
    """
    operator = as_operator(operator, check=False)
    check_count("probes", probes, 1)
    check_count("steps", steps, 1)
    steps = min(steps, operator.size)
    rows = [_quadrature(operator, steps, seed, probe) for probe in range(probes)]
    nodes, weights = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return SpectralDensity(nodes, weights, operator.size, probes * steps, operator.record)


def _quadrature(operator: Operator, steps: int, seed: int, probe: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights from one random vector, by its number. In an invariant subspace the rest of the nodes has weight 0."""
    seeds = itertools.count(1_000_003 * (seed + probe + 1))
    krylov = Krylov(operator, random_block(operator, 1, seed, probe), 1, seeds)
    for _ in range(steps):
        krylov.multiply()
    values, _, coefficients = krylov.ritz()
    return values.flip(0), (coefficients[0] ** 2).flip(0)
