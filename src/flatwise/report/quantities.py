"""The numbers that a report shows: their names, units, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatwise.statistics import Interval

MINUS = "−"  # the sign that lines up with digits
MISSING = "–"


@dataclass(frozen=True)
class Quantity:
    """A final number of a run: its key in the summary, its heading, unit, factor for display and decimals.

    `decimals` None means as many as the interval deserves. `difference_unit` is the unit of a difference of two of them.
    `short` is the heading for the terminal, where only quantities with one are shown when there is little room.
    """

    key: str
    heading: str
    unit: str = ""
    scale: float = 1.0
    decimals: int | None = None
    difference_unit: str = ""
    short: str = ""

    @property
    def title(self) -> str:
        """The heading with its unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def text(self, interval: Interval) -> str:
        """The mean as shown, without its unit."""
        return plain(interval.mean * self.scale, self._decimals(interval))

    def range(self, interval: Interval) -> str:
        """The ends of the interval as shown; empty without an interval, or where both ends are rounded to the same."""
        if interval.low is None or interval.high is None or interval.degenerate:
            return ""
        low, high = (plain(end * self.scale, self._decimals(interval)) for end in (interval.low, interval.high))
        return "" if low == high else f"{low} to {high}"

    def _decimals(self, interval: Interval) -> int:
        """As many as the interval deserves, and enough that no end is rounded to zero: digits never contradict a verdict."""
        ends = [end * self.scale for end in (interval.low, interval.high) if end is not None]
        least = self._natural(interval.mean * self.scale, ends)
        return next((d for d in range(least, least + 3) if all(round(end, d) for end in ends if end)), least + 3)

    def _natural(self, mean: float, ends: Sequence[float]) -> int:
        if self.decimals is not None:
            return self.decimals
        half = (ends[1] - ends[0]) / 2 if ends else 0.0
        return min(significant(mean), significant(half, 2)) if half else significant(mean)


TEST_ACCURACY = Quantity("test_accuracy", "Test accuracy", "%", 100.0, 1, "points", short="Accuracy (%)")
TOP_EIGENVALUE = Quantity("top_eigenvalue", "Top eigenvalue", short="Eigenvalue")
TRACE = Quantity("trace", "Trace of the Hessian")
COMPARED = (TEST_ACCURACY, TOP_EIGENVALUE, TRACE)
"""Of these the differences are judged."""

QUANTITIES = (
    TEST_ACCURACY,
    TOP_EIGENVALUE,
    TRACE,
    Quantity("evaluations", "Gradient evaluations", decimals=0, short="Gradients"),
    Quantity("seconds", "Training time", "s", decimals=1, short="Time (s)"),
    Quantity(
        "mean_alignment_displacement", "Alignment of the displacement with\u00a0v₁", decimals=2, short="Alignment"
    ),
    Quantity("mean_alignment_tracked", "Alignment of the tracked vector with\u00a0v₁", decimals=2),
    Quantity("mean_displacement_norm", "Displacement norm"),
    Quantity("train_loss", "Training loss"),
)


def plain(value: float, decimals: int) -> str:
    """A number with thousands separators and a true minus, none before a zero; a dash when it is NaN."""
    if math.isnan(value):
        return MISSING
    text = f"{value:,.{decimals}f}"
    return text.replace("-", MINUS if any(digit in text for digit in "123456789") else "")


def signed(text: str) -> str:
    """The text of a difference, with a plus where it is positive."""
    return text if text.startswith(MINUS) or not any(digit in text for digit in "123456789") else f"+{text}"


def p_value(p: float) -> str:
    """A p-value with two decimals, or two significant digits where it is small; empty when it is NaN."""
    if math.isnan(p):
        return ""
    return "< 0.0001" if p < 1e-4 else plain(p, 2 if p >= 0.1 else significant(p, 2) if p < 0.01 else 3)


def ratios(*values: float) -> list[str]:
    """Ratios that are to be compared with 1: two decimals, or two significant digits of the smallest."""
    decimals = max((significant(value, 2) for value in values), default=2)
    return [plain(value, max(2, decimals)) for value in values]


def compact(value: float) -> str:
    """A number with three significant digits."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", MINUS)
    return plain(value, significant(value))


def significant(value: float, digits: int = 3) -> int:
    """The decimals that show so many significant digits, between 0 and 8."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(8, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
