"""The trace of an operator from few products, with standard errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import torch

from flatwise import vectors as V
from flatwise.curvature import blocks
from flatwise.curvature.checks import check_count, check_operator
from flatwise.curvature.estimate import Estimate, mean_of
from flatwise.curvature.operator import Operator

TraceMethod: TypeAlias = Literal["xtrace", "hutch++", "hutchinson"]


def trace(operator: Operator, samples: int = 30, *, method: TraceMethod = "xtrace", seed: int = 0) -> Estimate:
    """The trace of a symmetric operator, an unbiased estimate with its standard error.

    "xtrace" (arXiv 2301.07825) and "hutch++" (arXiv 2010.09649) take the part of the operator in a random subspace exactly and
    estimate the rest: far more accurate than "hutchinson" where few eigenvalues stand out, as they do in networks. They hold up
    to `2 * samples` Vectors, "hutchinson" two. Where the subspace is the whole space the trace is exact.

    Args:
        operator: symmetric, such as a `hessian`.
        samples: how many products to take; at least 4 (hutch++: 6; hutchinson: 2). An even number for xtrace, a multiple of 3 for
            hutch++; what is over is not taken.
        method: the estimator.
        seed: of the random vectors.

    Raises:
        TypeError: `operator` is not an Operator, or samples not an integer.
        ValueError: samples too few, an unknown method, or an operator that returns NaN or infinity.
    """
    check_operator(operator)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    least, estimator = _METHODS[method]
    check_count("samples", samples, least)
    return replace(estimator(operator, samples, seed), record=operator.record)


def _hutchinson(operator: Operator, samples: int, seed: int) -> Estimate:
    """The mean of z'Hz over normal z of length sqrt(size), one vector at a time."""
    found: list[float] = []
    for i in range(samples):
        (z,) = blocks.random_block(operator, 1, seed + i)
        (image,) = blocks.products(operator, [z])
        found.append(operator.size * float(V.dot(z, image) / V.dot(z, z)))
    return mean_of(torch.tensor(found, dtype=torch.float64), samples)


def _hutch_plus_plus(operator: Operator, samples: int, seed: int) -> Estimate:
    """The trace within the range of `H S`, exact, plus Hutchinson's mean outside of it."""
    third = min(samples // 3, operator.size)
    basis, _ = blocks.orthonormalized(blocks.products(operator, blocks.random_block(operator, third, seed)))
    inside = float(blocks.gram(basis, blocks.products(operator, basis)).trace())
    probes = [blocks.without(z, basis) for z in blocks.random_block(operator, third, seed + third)]
    room = operator.size - sum(float(V.norm(q)) > 0 for q in basis)
    if room == 0:
        return Estimate(inside, 0.0, 2 * third)
    outside = [V.dot(z, h) / V.dot(z, z) for z, h in zip(probes, blocks.products(operator, probes), strict=True)]
    return mean_of(room * torch.stack(outside).to("cpu", torch.float64), 3 * third, inside)


def _xtrace(operator: Operator, samples: int, seed: int) -> Estimate:
    """Every vector in turn is the probe outside of the range of all others (arXiv 2301.07825, section 2.1).

    With `Y = H Z = Q R`, leaving out vector i turns the projector `Q Q'` into `Q (I - s s') Q'`, where `s` is column i of the
    inverse of `R'`, normalised. The vectors have the direction alone at random: the probe's length is set for the room it has.
    """
    k = min(samples // 2, operator.size)
    z = blocks.random_block(operator, k, seed)
    y = blocks.products(operator, z)
    q, r = blocks.orthonormalized(y)
    if bool((r.diagonal() == 0).any()):  # the range is a subspace that has been found whole
        return Estimate(float(blocks.gram(q, blocks.products(operator, q)).trace()), 0.0, 2 * k)
    h = blocks.gram(q, blocks.products(operator, q))
    if k == operator.size:
        return Estimate(float(h.trace()), 0.0, 2 * k)
    s = torch.linalg.inv(r).T
    s = s / torch.linalg.vector_norm(s, dim=0)
    w = blocks.gram(q, z)
    c = w - s * (s * w).sum(0)
    square = torch.tensor([float(V.dot(v, v)) for v in z]) - (c * c).sum(0)
    quadratic = torch.tensor([float(V.dot(a, b)) for a, b in zip(z, y)]) - 2 * (c * r).sum(0) + (c * (h @ c)).sum(0)
    estimates = h.trace() - (s * (h @ s)).sum(0) + (operator.size - k + 1) * quadratic / square
    return mean_of(estimates, 2 * k)


_METHODS = {"xtrace": (4, _xtrace), "hutch++": (6, _hutch_plus_plus), "hutchinson": (2, _hutchinson)}
