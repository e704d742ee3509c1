"""The trace of an operator from few products, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature import blocks
from flatwise.curvature.adapters import Multiplies, as_operator
from flatwise.curvature.checks import check_count
from flatwise.curvature.estimate import Estimate, mean_of
from flatwise.curvature.krylov import ROUNDING, widened
from flatwise.curvature.operator import Operator

TraceMethod: TypeAlias = Literal["xtrace", "hutch++", "hutchinson"]

MOST = 64
"""Vectors that are left out for the error of xtrace: with more of them it would cost more than the products."""


def trace(operator: Multiplies, samples: int = 30, *, method: TraceMethod = "xtrace", seed: int = 0) -> Estimate:
    """The trace of a symmetric operator, an unbiased estimate with its standard error.

    "xtrace" (arXiv 2301.07825) and "hutch++" (arXiv 2010.09649) take the part of the operator in a random subspace exactly and
    estimate the rest: far more accurate than "hutchinson" where few eigenvalues stand out, as they do in networks. They hold up
    to `2 * samples` Vectors, "hutchinson" two. Where the subspace is the whole space the trace is exact. Where "xtrace" finds no
    more than rounding outside of it, the error is the most that many equal eigenvalues could hide there.

    Args:
        operator: symmetric, such as a `hessian`, or anything else that `as_operator` takes.
        samples: how many products to take; at least 4 (hutch++: 6; hutchinson: 2). An even number for xtrace, a multiple of 3 for
            hutch++; what is over is not taken.
        method: the estimator.
        seed: of the random vectors.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors, or samples not an integer.
        ValueError: samples too few, an unknown method, or an operator that returns NaN or infinity.
    """
    operator = as_operator(operator, check=False)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    least, estimator = _METHODS[method]
    check_count("samples", samples, least)
    return replace(estimator(operator, samples, seed), record=operator.record)


def _hutchinson(operator: Operator, samples: int, seed: int) -> Estimate:
    """The mean of z'Hz over normal z of length sqrt(size), one vector at a time."""
    found: list[float] = []
    for i in range(samples):
        (z,) = blocks.random_block(operator, 1, seed, i)
        (image,) = blocks.products(operator, [z])
        found.append(operator.size * float(V.dot(z, image) / V.dot(z, z)))
    return mean_of(torch.tensor(found, dtype=torch.float64), samples)


def _hutch_plus_plus(operator: Operator, samples: int, seed: int) -> Estimate:
    """The trace within the range of `H S`, exact, plus Hutchinson's mean outside of it."""
    third = min(samples // 3, operator.size)
    basis, _ = blocks.orthonormalized(blocks.products(operator, blocks.random_block(operator, third, seed)))
    inside = float(blocks.gram(basis, blocks.products(operator, basis)).trace())
    probes = [blocks.without(z, basis) for z in blocks.random_block(operator, third, seed, third)]
    room = operator.size - sum(float(V.norm(q)) > 0 for q in basis)
    if room == 0:
        return Estimate(inside, 0.0, 2 * third)
    outside = [V.dot(z, h) / V.dot(z, z) for z, h in zip(probes, blocks.products(operator, probes), strict=True)]
    return mean_of(room * torch.stack(outside).to("cpu", torch.float64), 3 * third, inside)


def _xtrace(operator: Operator, samples: int, seed: int) -> Estimate:
    """Every vector in turn is the probe outside of the range of all others (arXiv 2301.07825, section 2.1)."""
    k = min(samples // 2, operator.size)
    z = blocks.random_block(operator, k, seed)
    y = blocks.products(operator, z)
    q, r = blocks.orthonormalized(y)
    h = blocks.gram(q, blocks.products(operator, q))
    if k == operator.size or bool((r.diagonal() == 0).any()):  # the range is known whole, to rounding
        return Estimate(float(h.trace()), _hidden(operator, r), 2 * k)
    lengths, forms = (
        torch.tensor([float(V.dot(a, b)) for a, b in zip(z, c, strict=True)], dtype=torch.float64) for c in (z, y)
    )
    return _Exchanged(r, h, blocks.gram(q, z), lengths, forms, operator.size).estimate()


def _hidden(operator: Operator, r: Tensor) -> float:
    """The most that the trace outside of a range can be if a product is there no longer than what counted as rounding.

    That is the length of a random vector's product, which is about the Frobenius norm: of equal eigenvalues the trace is the
    root of their number times that.
    """
    room = operator.size - int((r.diagonal() > 0).sum())
    longest = float(torch.linalg.vector_norm(r, dim=0).max())
    return math.sqrt(room) * ROUNDING * V.epsilon(widened(operator.like)) * longest


@dataclass(frozen=True)
class _Exchanged:
    """What the estimates of XTrace are made of, for random vectors Z with `H Z = Q R`.

    Attributes:
        r: R [k, k].
        h: `Q' H Q` [k, k].
        w: `Q' Z` [k, k].
        lengths: z'z of each vector [k].
        forms: z'Hz of each vector [k].
        size: of the operator.
    """

    r: Tensor
    h: Tensor
    w: Tensor
    lengths: Tensor
    forms: Tensor
    size: int

    def estimates(self) -> Tensor:
        """One for each vector that is left out of the range and probes what is outside of it [k].

        Leaving out vector i turns the projector `Q Q'` into `Q (I - s s') Q'`, where `s` is column i of the inverse of `R'`,
        normalised. The vectors have the direction alone at random: the probe's length is set for the room it has.
        """
        s = torch.linalg.inv(self.r).T
        s = s / torch.linalg.vector_norm(s, dim=0)
        c = self.w - s * (s * self.w).sum(0)
        square = self.lengths - (c * c).sum(0)
        outside = self.forms - 2 * (c * self.r).sum(0) + (c * (self.h @ c)).sum(0)
        return self.h.trace() - (s * (self.h @ s)).sum(0) + (self.size - len(s) + 1) * outside / square

    def estimate(self) -> Estimate:
        """Their mean. They share their vectors, so that their spread alone makes the error too small (0.7 to 0.9 of it).

        Where they depend on m vectors at a time the true variance is m times what the spread says, and the jackknife's is m
        times the true one (Efron and Stein 1981). So the error is the geometric mean of both.
        """
        k, found = len(self.r), self.estimates()
        without = torch.stack([self._without(i).estimates().mean() for i in range(0, k, -(-k // MOST))])
        spread = found.var() / k
        jackknife = (k - 1) ** 2 / k * without.var()
        return Estimate(float(found.mean()), float((spread * jackknife) ** 0.25), 2 * k, degrees=k - 1)

    def _without(self, i: int) -> _Exchanged:
        """The same without vector i: the range is a part of the one that is known, so no product is needed."""
        kept = [j for j in range(len(self.r)) if j != i]
        inside, r = torch.linalg.qr(self.r[:, kept])
        w = inside.T @ self.w[:, kept]
        return _Exchanged(r, inside.T @ self.h @ inside, w, self.lengths[kept], self.forms[kept], self.size)


_METHODS = {"xtrace": (4, _xtrace), "hutch++": (6, _hutch_plus_plus), "hutchinson": (2, _hutchinson)}
