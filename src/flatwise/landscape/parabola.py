"""The parabola that touches a line of losses at 0: its curvature is that of the Hessian along the direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from flatwise.landscape.slices import Line

Point: TypeAlias = tuple[float, float]

LEAST, MOST = 3, 5


@dataclass(frozen=True)
class Parabola:
    """Value, slope and curvature of a line at 0.

    Attributes:
        value: the loss at 0.
        slope: its first derivative there, g'd for the direction d.
        curvature: its second derivative there, d'Hd: for a unit eigenvector the eigenvalue.
        error: how far the curvature from fewer points is apart from it, which bounds neither truncation nor rounding but shows
            where points are too far from each other; NaN where there are no more than three.
    """

    value: float
    slope: float
    curvature: float
    error: float

    def at(self, length: float) -> float:
        """Its height at a length."""
        return self.value + self.slope * length + self.curvature * length**2 / 2


def parabola(line: Line) -> Parabola:
    """The parabola of a line at 0, from differences of its own losses: of the five lengths next to 0, or of three.

    Raises:
        ValueError: fewer than three finite losses around 0.
    """
    found = fitted(line.lengths, line.losses)
    if found is None:
        raise ValueError("a parabola needs three finite losses around length 0; add lengths on both sides of it")
    return found


def fitted(lengths: Sequence[float], losses: Sequence[float]) -> Parabola | None:
    """The parabola at 0 of some losses; None where they do not allow it."""
    near = _nearest([(x, y) for x, y in zip(lengths, losses, strict=True) if math.isfinite(y)])
    if len(near) < LEAST:
        return None
    value, slope, curvature = _derivatives(near)
    error = abs(curvature - _derivatives(near[:LEAST])[2]) if len(near) > LEAST else math.nan
    return Parabola(value, slope, curvature, error)


def _nearest(points: Sequence[Point]) -> list[Point]:
    """Up to five points next to 0, beginning with one on either side; nothing if there are none."""
    near = sorted(points, key=lambda point: abs(point[0]))
    sides = [next((p for p in near if p[0] < 0), None), next((p for p in near if p[0] > 0), None)]
    first = [p for p in sides if p is not None]
    return [*first, *(p for p in near if p not in first)][:MOST] if len(first) == 2 else []


def _derivatives(points: Sequence[Point]) -> tuple[float, float, float]:
    """Value and both derivatives at 0 of the polynomial through some points."""
    xs, ys = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    reach = float(xs.abs().max())
    value, slope, half, *_ = torch.linalg.solve(torch.linalg.vander(xs / reach), ys).tolist()
    return value, slope / reach, 2 * half / reach**2
