"""How far an axis or a color scale of losses goes: walls must not leave the valley without room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatwise.report.curves import wants_log
from flatwise.report.figures import Json
from flatwise.report.quantities import compact
from flatwise.report.series import quantile

WALL = 2.5
"""What is higher above the lowest loss than so many times three quarters of all losses is a wall."""


@dataclass(frozen=True)
class Levels:
    """A scale of losses.

    Attributes:
        log: whether it is logarithmic.
        span: where it begins and ends, in powers of ten if it is.
        highest: the greatest of the losses.
    """

    log: bool
    span: tuple[float, float]
    highest: float

    @property
    def clipped(self) -> bool:
        """Whether there are losses beyond its end."""
        return self.highest > self.value(self.span[1]) * (1 + 1e-9)

    def place(self, loss: float | None) -> float | None:
        """Where a loss stands on it; None where that is nowhere."""
        if loss is None or (self.log and loss <= 0):
            return None
        return math.log10(loss) if self.log else loss

    def value(self, place: float) -> float:
        """The loss that stands at a place."""
        return 10.0**place if self.log else place

    def axis(self) -> tuple[float, float]:
        """The range of an axis, with a little room."""
        low, high = self.span
        margin = 0.05 * (high - low)
        return low - margin, high + margin

    def holds(self, loss: float) -> bool:
        """Whether a loss is on the axis."""
        place, (low, high) = self.place(loss), self.axis()
        return place is not None and low <= place <= high

    def ticks(self) -> Json:
        """Ticks at round losses; where there is more beyond the end, the last one says so."""
        low, high = self.span
        room = high - 0.06 * (high - low) if self.clipped else high
        inner = [(place, f"{loss:.6g}") for loss in self._round() if low <= (place := self.place(loss) or 0.0) <= room]
        last = [(high, f"≥ {compact(self.value(high))}")] if self.clipped else []
        return {"tickvals": [place for place, _ in inner + last], "ticktext": [text for _, text in inner + last]}

    def words(self, what: str) -> str:
        """What a reader must know of the axis or the colors, in a sentence or none."""
        kind = f"logarithmic {what}" if self.log else what
        if not self.clipped:
            return f"{kind.capitalize()}." if self.log else ""
        end = compact(self.value(self.span[1]))
        return f"{kind.capitalize()} up to {end}; the loss rises to {compact(self.highest)}."

    def _round(self) -> list[float]:
        low, high = self.value(self.span[0]), self.value(self.span[1])
        if self.log and high > 8 * low:
            steps = (1, 2, 5) if high < 2000 * low else (1,)
            powers = range(math.floor(self.span[0]), math.ceil(self.span[1]) + 1)
            return [step * 10.0**power for power in powers for step in steps]
        step = _step((high - low) / 5)
        return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _step(about: float) -> float:
    """1, 2 or 5 times a power of ten, the first that is as large."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= about * (1 - 1e-9))


def levels(losses: Sequence[float]) -> Levels:
    """The scale for some finite losses: logarithmic where they differ by much, and with an end below the walls."""
    if not losses:
        return Levels(False, (0.0, 1.0), 0.0)
    log = wants_log(losses)
    scaled = [math.log10(loss) if log else loss for loss in losses]
    low, high = min(scaled), max(scaled)
    usual = quantile(scaled, 0.75) - low
    end = min(high, low + WALL * usual) if usual else high
    return Levels(log, (low, end) if end > low else (low - 0.5, low + 0.5), max(losses))
