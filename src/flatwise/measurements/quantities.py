"""The quantities that are measured of one network, each as JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from flatwise import curvature, landscape
from flatwise import vectors as V
from flatwise.curvature import EigenPairs, Estimate, Operator, SpectralDensity
from flatwise.measurements.meter import Meter
from flatwise.measurements.plan import Plan
from flatwise.measurements.subject import Subject

PATIENCE = 150
"""Products after which the search for eigenpairs ends."""


@dataclass(frozen=True)
class Work:
    """What the quantities are measured with.

    Attributes:
        subject: what is measured.
        plan: how, with its defaults written out.
        operator: the Hessian; its products are counted by `meter`.
        meter: counts.
    """

    subject: Subject
    plan: Plan
    operator: Operator
    meter: Meter

    @cached_property
    def pairs(self) -> EigenPairs:
        """The eigenpairs at the wanted ends, values descending; found once.

        Both ends are one search. The lowest eigenvalue of a trained network may be all but 0, at the edge of the bulk, and no
        number of products would know it to a share of itself: the search ends after some, and the residuals say the rest.
        """
        k, which = max(self.wanted, self.lowest), "both" if self.lowest else "largest"
        if self.lowest and 2 * k > self.operator.size:
            k, which = self.operator.size, "largest"
        return curvature.top_eigenpairs(
            self.operator, k, self.plan.tol or 1e-2, which=which, seed=self.plan.seed, max_products=max(PATIENCE, 2 * k)
        )

    @property
    def wanted(self) -> int:
        """How many of the largest eigenpairs."""
        return self.plan.top or (2 if self.plan.landscape == "plane" else 1)

    @property
    def lowest(self) -> int:
        """How many of the lowest ones."""
        return self.plan.lowest or 0


def eigenvalues(work: Work) -> dict[str, Any]:
    """Both ends of the spectrum, and how the gradient lies to the top eigenvector."""
    pairs = work.pairs
    aligned = abs(float(V.cosine(work.subject.objective.gradient(), pairs.vectors[0])))
    return {
        "top": _part(pairs, slice(work.wanted)),
        "lowest": _part(pairs, slice(-1, -work.lowest - 1, -1)) if work.lowest else None,
        "converged": pairs.converged,
        "alignment_gradient": aligned,
    }


def _part(pairs: EigenPairs, places: slice) -> dict[str, Any]:
    return {"values": pairs.values[places], "residuals": pairs.residuals[places]}


def trace(work: Work) -> dict[str, Any]:
    """The trace by XTrace."""
    found = curvature.trace(work.operator, work.plan.trace_samples or 30, seed=work.plan.seed)
    return _estimate(found) | {"method": "xtrace", "samples": work.plan.trace_samples}


def frobenius(work: Work) -> dict[str, Any]:
    """The Frobenius norm."""
    return _estimate(curvature.frobenius_norm(work.operator, work.plan.norm_samples or 30, seed=work.plan.seed))


def density(work: Work) -> dict[str, Any]:
    """The spectral density, and its negative part."""
    found = curvature.spectral_density(work.operator, work.plan.probes or 4, work.plan.steps or 50, seed=work.plan.seed)
    points = found.grid()
    values, errors = found.at(points)
    return {
        "points": points.tolist(),
        "density": values.tolist(),
        "standard_error": errors.tolist(),
        "nodes": found.nodes.tolist(),
        "weights": found.weights.tolist(),
        "size": found.size,
        "negative": _negative_part(found),
    }


def _negative_part(found: SpectralDensity) -> dict[str, Any]:
    """The sum of all negative eigenvalues over that of all magnitudes, with its standard error as a ratio of two means.

    Not how many are negative: most are near zero, and on which side of it a quadrature of few steps cannot tell.
    """
    magnitudes = found.nodes.abs() * found.weights
    below, all_of_it = (magnitudes * (found.nodes < 0)).sum(1), magnitudes.sum(1)
    whole = float(all_of_it.mean())
    share = float(below.mean()) / whole if whole else 0.0
    spread = float((below - share * all_of_it).std()) if len(below) > 1 else math.nan
    return {"value": share, "standard_error": spread / (whole or 1.0) / math.sqrt(len(below))}


def slices(work: Work) -> dict[str, Any]:
    """The loss along the top eigenvector, or on the plane of the top two; their signs are such that the gradient points ahead."""
    objective, step = work.subject.objective, work.subject.step
    uphill = objective.gradient()
    first, *others = [v if V.dot(v, uphill) >= 0 else V.scale(v, -1.0) for v in work.pairs.vectors[: work.wanted]]
    reach = work.plan.reach or 1.0
    lengths = torch.linspace(-reach, reach, work.plan.points or 21, dtype=torch.float64).tolist()

    def tell(done: int, _total: int) -> None:
        work.meter.tell(int(done % VALUES_A_PRODUCT == 0))

    if work.plan.landscape == "plane":
        return landscape.plane(
            objective, first, others[0], lengths, lengths, names=("v₁", "v₂"), step=step, check=False, progress=tell
        ).to_dict()
    return landscape.line(objective, first, lengths, name="v₁", step=step, check=False, progress=tell).to_dict()


VALUES_A_PRODUCT = 8
"""So many values of the loss take about as long as a product."""

QUANTITIES: dict[str, Callable[[Work], dict[str, Any]]] = {
    "eigenvalues": eigenvalues,
    "trace": trace,
    "density": density,
    "frobenius": frobenius,
    "landscape": slices,
}


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "standard_error": found.standard_error}


def expected_products(plan: Plan) -> dict[str, int]:
    """About how many products each quantity of a settled plan takes; that of eigenpairs hangs on the spectrum."""
    pairs = 10 + 4 * max(plan.top or 2, plan.lowest or 0) * (2 if plan.lowest else 1)
    values = (plan.points or 0) ** (2 if plan.landscape == "plane" else 1)
    alone = "eigenvalues" not in plan.what
    every = {
        "eigenvalues": pairs,
        "trace": plan.trace_samples or 0,
        "density": (plan.probes or 0) * (plan.steps or 0),
        "frobenius": plan.norm_samples or 0,
        "landscape": pairs * alone + values // VALUES_A_PRODUCT,
    }
    return {name: every[name] for name in plan.what}


def held_vectors(plan: Plan) -> int:
    """The largest number of Vectors that a quantity of a settled plan holds at once."""
    every = {
        "eigenvalues": 2 * (6 * max(plan.top or 2, plan.lowest or 0) + 20),
        "trace": 2 * (plan.trace_samples or 0),
        "density": (plan.steps or 0) + 2,
        "frobenius": 3,
        "landscape": 2 * (3 * (plan.top or 2) + 20),
    }
    return max(every[name] for name in plan.what)
