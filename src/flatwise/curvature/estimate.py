"""Numbers that come from random vectors, and how far off they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """

    value: float
    standard_error: float
    products: int
    record: Record | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """An approximate 95 % interval, `value` plus and minus 1.96 standard errors."""
        margin = 1.96 * self.standard_error
        return self.value - margin, self.value + margin

    def __float__(self) -> float:
        return self.value


def mean_of(samples: Tensor, products: int, shift: float = 0.0) -> Estimate:
    """The mean of independent samples [n], plus a number that is known exactly."""
    error = float(samples.std() / math.sqrt(len(samples))) if len(samples) > 1 else math.nan
    return Estimate(shift + float(samples.mean()), error, products)


def root_of(square: Estimate) -> Estimate:
    """The square root of an estimate, its error to first order."""
    value = math.sqrt(max(square.value, 0.0))
    error = square.standard_error / (2 * value) if value else math.nan
    return Estimate(value, error, square.products)
