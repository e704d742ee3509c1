"""Numbers that come from random vectors, and how far off they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from flatwise.curvature.record import Record


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate.

    Attributes:
        value: the estimate.
        standard_error: the standard deviation of `value` over other random vectors, itself estimated; NaN where a single sample
            says nothing about it.
        products: how many products with the operator it took.
        record: how the operator computes products: engine, precision, data, step. None where the operator has none.
        degrees: of freedom that the standard error is estimated with: the number of independent samples less 1.
    """

    value: float
    standard_error: float
    products: int
    record: Record | None = None
    degrees: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """An approximate 95 % interval: as many standard errors as Student's distribution says, 1.96 with many samples."""
        margin = _student(self.degrees) * self.standard_error
        return self.value - margin, self.value + margin

    def __float__(self) -> float:
        return self.value


def mean_of(samples: Tensor, products: int, shift: float = 0.0) -> Estimate:
    """The mean of independent samples [n], plus a number that is known exactly."""
    error = float(samples.std() / math.sqrt(len(samples))) if len(samples) > 1 else math.nan
    return Estimate(shift + float(samples.mean()), error, products, degrees=len(samples) - 1)


def root_of(square: Estimate) -> Estimate:
    """The square root of an estimate, its error to first order."""
    value = math.sqrt(max(square.value, 0.0))
    error = square.standard_error / (2 * value) if value else math.nan
    return replace(square, value=value, standard_error=error)


def _student(degrees: float) -> float:
    """The 97.5 % quantile of Student's distribution, to 1 % (an expansion in 1 / degrees, which is too short for 1 and 2)."""
    if degrees < 3:
        return {1: 12.71, 2: 4.303}.get(int(degrees), math.nan)
    z = 1.959964
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
