"""What several claims need of their curves: a band over seeds, and the straight line through points."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, linear_regression

from flatwise.experiments.claims.claim import Line


def band(label: str, x: Sequence[float], curves: Sequence[Sequence[float]]) -> Line:
    """The mean of some curves, one for each seed, with their range; up to where the shortest ends."""
    columns = list(zip(*curves, strict=False))
    return Line(
        label, x[: len(columns)], [fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]
    )


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the least-squares line through some points, and the share of the variance of y that it explains (R^2)."""
    slope, start = linear_regression(x, y)
    mean = fmean(y)
    left = sum((b - slope * a - start) ** 2 for a, b in zip(x, y, strict=True))
    whole = sum((b - mean) ** 2 for b in y)
    return slope, 1 - left / whole if whole else 0.0
