"""The Frobenius norm and the diagonal of an operator, from products with random vectors."""

from __future__ import annotations

from dataclasses import replace

import torch

from flatwise import vectors as V
from flatwise.curvature import blocks
from flatwise.curvature.adapters import Multiplies, as_operator
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
        (z,) = blocks.random_block(operator, 1, seed + i)
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
    total, squares = (V.zeros_like(blocks.widened(operator.like)) for _ in range(2))
    for i in range(samples):
        z = V.each(lambda ts: [torch.sign(t) for t in ts], blocks.random_block(operator, 1, seed + i)[0])
        (image,) = blocks.products(operator, [z])
        sample = V.each(lambda ts, z=z: [s * t for s, t in zip(V.present(z), ts, strict=True)], image)
        V.add_(total, sample)
        V.add_(squares, V.each(lambda ts: [t * t for t in ts], sample))
    mean = V.scale(total, 1 / samples)
    return mean, _errors(mean, squares, samples)


def _errors(mean: Vector, squares: Vector, samples: int) -> Vector:
    variance = V.add(V.scale(squares, 1 / samples), V.each(lambda ts: [t * t for t in ts], mean), -1.0)
    return V.each(lambda ts: [(t.clamp(min=0) / (samples - 1)).sqrt() for t in ts], variance)
