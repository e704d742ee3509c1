"""The Frobenius norm and the diagonal of an operator, from products with random vectors."""

from __future__ import annotations

from dataclasses import replace

import torch

from flatwise import vectors as V
from flatwise.curvature import blocks
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.algebra import times
from flatwise.curvature.checks import check_count
from flatwise.curvature.estimate import Estimate, mean_of, root_of
from flatwise.vectors import Vector


def frobenius_norm(operator: Multiplies, samples: int = 30, *, seed: int = 0) -> Estimate:
    """The root of the sum of all squared eigenvalues: `size` times the mean of |Hz|^2 over random unit vectors, and its root.

    Args:
        operator: symmetric, such as a `hessian`, or anything else that `as_operator` takes.
        samples: products, >= 2.
        seed: of the random vectors.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors, or samples not an integer.
        ValueError: samples below 2, or an operator that returns NaN or infinity.
    """
    operator = as_operator(operator, check=False)
    check_count("samples", samples, 2)
    found: list[float] = []
    for i in range(samples):
        (z,) = blocks.random_block(operator, 1, seed, i)
        (image,) = blocks.products(operator, [z])
        found.append(operator.size * float(V.dot(image, image) / V.dot(z, z)))
    square = mean_of(torch.tensor(found, dtype=torch.float64), samples)
    return replace(root_of(square), record=operator.record)


def diagonal(operator: Multiplies, samples: int = 30, *, seed: int = 0) -> tuple[Vector, Vector]:
    """The diagonal and the standard error of each of its entries: the mean of `z * Hz` over random signs (Bekas, Kokiopoulou
    and Saad 2007, with entries +-1, so that a diagonal operator is met exactly).

    Args:
        operator: symmetric, such as a `hessian`, or anything else that `as_operator` takes.
        samples: products, >= 2.
        seed: of the random vectors.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors, or samples not an integer.
        ValueError: samples below 2, or an operator that returns NaN or infinity.
    """
    operator = as_operator(operator, check=False)
    check_count("samples", samples, 2)
    mean, squares = (V.zeros_like(blocks.widened(operator.like)) for _ in range(2))
    for i in range(samples):
        z = V.each(lambda ts: [torch.sign(t) for t in ts], blocks.random_block(operator, 1, seed, i)[0])
        sample = times(z, blocks.products(operator, [z])[0])
        # Welford's update: the mean of squares less the square of the mean would be rounding where entries are large.
        before = V.add(sample, mean, -1.0)
        V.add_(mean, before, 1 / (i + 1))
        V.add_(squares, times(before, V.add(sample, mean, -1.0)))
    by = samples * (samples - 1)
    return mean, V.each(lambda ts: [(t.clamp(min=0) / by).sqrt() for t in ts], squares)
