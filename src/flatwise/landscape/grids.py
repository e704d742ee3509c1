"""The places along a direction, as ascending numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

LENGTHS = [i / 20 for i in range(-20, 21)]
"""Forty-one lengths from -1 to 1."""

PLANE = [i / 12 for i in range(-12, 13)]
"""Twenty-five lengths from -1 to 1."""

POSITIONS = [i / 20 for i in range(-5, 26)]
"""Thirty-one positions on a path, a quarter of it beyond each end; 0 and 1 are among them."""


def ascending(name: str, values: Iterable[float] | None, usual: Sequence[float]) -> list[float]:
    """The values as a list of numbers, the usual ones for None.

    Raises:
        ValueError: none, or not finite, or not ascending.
    """
    found = [float(value) for value in (usual if values is None else values)]
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must be finite numbers, at least one, got {found}")
    if any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"{name} must ascend, got {found}; sorted(set({name})) does")
    return found


def spanning(values: Sequence[float], margin: float, points: int) -> list[float]:
    """So many evenly spaced points over the range of some values and, on both sides, a margin, as a share of it."""
    low, high = min(values), max(values)
    start, width = low - margin * (high - low), (1 + 2 * margin) * (high - low)
    return [start + width * i / (points - 1) for i in range(points)]
