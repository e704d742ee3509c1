"""Spectral densities from quadrature nodes: each eigenvalue blurred by a Gaussian, on any axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from flatwise.report.series import quantile

Bump: TypeAlias = tuple[float, float, float]
"""Middle, mass and width."""

POINTS = 401
BLUR = 150
"""The Gaussian of a single eigenvalue is one part in so many of the axis wide."""

FEW, WIDEST = 10, 3
"""A node that stands for more than so many eigenvalues is spread over its distance from its neighbours, up to so many widths:
quadrature knows how many eigenvalues there are, not where in between, and would show a comb."""


@dataclass(frozen=True)
class Density:
    """A density along an axis, and its standard error over the random vectors.

    Attributes:
        places: along the axis.
        values: shares of the eigenvalues for a unit of the axis.
        errors: standard errors; empty where a single random vector says nothing about them.
        single: the height of a single eigenvalue.
    """

    places: list[float]
    values: list[float]
    errors: list[float]
    single: float


def density(entry: Mapping[str, Any], place: Callable[[float], float], low: float, high: float) -> Density:
    """The density of an entry's "nodes" and "weights" [random vectors][steps] on an axis from `low` to `high`."""
    width = (high - low) / BLUR
    places = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    rows = [
        _blurred(_bumps([place(node) for node in nodes], weights, width, FEW / entry["size"]), places)
        for nodes, weights in zip(entry["nodes"], entry["weights"], strict=True)
    ]
    values = [math.fsum(column) / len(rows) for column in zip(*rows)]
    errors = [_error(column) for column in zip(*rows)] if len(rows) > 1 else []
    return Density(places, values, errors, 1 / (entry["size"] * width * math.sqrt(2 * math.pi)))


def _bumps(nodes: Sequence[float], weights: Sequence[float], width: float, few: float) -> list[Bump]:
    """What each node becomes: a bump of at least this width."""
    gaps = [after - before for before, after in pairwise(nodes)]
    spread = [min(0.4 * (a + b), WIDEST * width) for a, b in zip([*gaps[:1], *gaps], [*gaps, *gaps[-1:]])] or [width]
    found = zip(nodes, weights, spread, strict=True)
    return [(node, weight, max(width, gap) if weight > few else width) for node, weight, gap in found]


def _blurred(bumps: Sequence[Bump], places: Sequence[float]) -> list[float]:
    """The sum of Gaussian bumps, each reaching eight widths far, where it is 1e-14 of its height."""
    total = [0.0] * len(places)
    step = places[1] - places[0]
    for middle, weight, width in bumps:
        height = weight / (width * math.sqrt(2 * math.pi))
        first = max(0, math.ceil((middle - 8 * width - places[0]) / step))
        last = min(len(places) - 1, math.floor((middle + 8 * width - places[0]) / step))
        for i in range(first, last + 1):
            total[i] += height * math.exp(-(((places[i] - middle) / width) ** 2) / 2)
    return total


def _error(samples: Sequence[float]) -> float:
    mean = math.fsum(samples) / len(samples)
    return math.sqrt(math.fsum((s - mean) ** 2 for s in samples) / (len(samples) - 1) / len(samples))


def extremes(entries: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The least and the greatest eigenvalue that any entry knows of."""
    values = [node for entry in entries for nodes in entry["nodes"] for node in nodes]
    values += [value for entry in entries for value in entry.get("eigenvalues") or []]
    return min(values), max(values)


def bulk(entries: Sequence[Mapping[str, Any]], share: float = 0.9) -> float:
    """The size below which that share of all eigenvalues lies, the median over the entries."""
    return quantile([_bulk(entry, share) for entry in entries], 0.5)


def _bulk(entry: Mapping[str, Any], share: float) -> float:
    rows = zip(entry["nodes"], entry["weights"], strict=True)
    sizes = sorted((abs(node), weight) for nodes, weights in rows for node, weight in zip(nodes, weights, strict=True))
    rest = share * math.fsum(weight for _, weight in sizes)
    for size, weight in sizes:
        rest -= weight
        if rest <= 0:
            return size
    return sizes[-1][0]


def resolution(entries: Sequence[Mapping[str, Any]]) -> float:
    """How far apart the nodes are where most eigenvalues lie: the median over the random vectors, of the coarsest entry."""
    rows = [list(zip(entry["nodes"], entry["weights"], strict=True)) for entry in entries]
    return max(quantile([_gap(*row) for row in one], 0.5) for one in rows)


def _gap(nodes: Sequence[float], weights: Sequence[float]) -> float:
    heaviest = max(range(len(nodes)), key=lambda i: weights[i])
    return min(
        (abs(nodes[i] - nodes[heaviest]) for i in (heaviest - 1, heaviest + 1) if 0 <= i < len(nodes)), default=0.0
    )
