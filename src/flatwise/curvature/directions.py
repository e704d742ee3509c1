"""The curvature along a direction: of a gradient, an update, a displacement, or any Vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.blocks import products
from flatwise.curvature.krylov import fitted
from flatwise.curvature.lanczos import EigenPairs
from flatwise.curvature.record import Record


@dataclass(frozen=True)
class DirectionalCurvature:
    """How a loss curves along a vector v.

    Attributes:
        value: `v'Hv / v'v`, between the smallest and the largest eigenvalue.
        residual: `norm(H u - value * u)` of the unit vector u: 0 for an eigenvector; an eigenvalue of H lies within this distance
            of the value.
        length: the norm of v.
        cosines: of v with each eigenvector that was given; their signs are as arbitrary as those of eigenvectors.
        record: how the operator computes products: engine, precision, data, step. None where the operator has none.
    """

    value: float
    residual: float
    length: float
    cosines: list[float]
    record: Record | None = None

    @property
    def share(self) -> float:
        """The part of v's squared length that lies in the span of the eigenvectors that were given, 0 to 1."""
        return sum(cosine**2 for cosine in self.cosines)

    def __float__(self) -> float:
        return self.value


def directional_curvature(
    operator: Multiplies, along: Sequence[Tensor | None], pairs: EigenPairs | None = None
) -> DirectionalCurvature:
    """The curvature along a vector, by one product.

    Args:
        operator: symmetric, such as a `hessian`, or anything else that `as_operator` takes.
        along: any Vector but zero: `objective.gradient()`, the difference of the weights after and before a step, the
            displacement of SAM. None counts as zero.
        pairs: eigenvectors to compare the vector with, from `top_eigenpairs` of the same operator.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors.
        ValueError: the vector is zero, NaN or infinite, or has other shapes than the operator's; or so has the product.
    """
    operator = as_operator(operator, check=False)
    vector = fitted(along, operator.like, "the direction")
    length = float(V.norm(vector))
    if not 0 < length < math.inf:
        raise ValueError(f"the direction has norm {length}; it must be finite and above 0")
    unit = V.scale(vector, 1 / length)
    (image,) = products(operator, [unit])
    value = float(V.dot(unit, image))
    residual = float(V.norm(V.add(image, unit, -value)))
    cosines = [] if pairs is None else [float(V.cosine(unit, v)) for v in pairs.vectors]
    return DirectionalCurvature(value, residual, length, cosines, operator.record)
