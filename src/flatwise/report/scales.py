"""An axis that is linear around 0 and logarithmic on both sides, which Plotly does not have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flatwise.report.figures import Json
from flatwise.report.quantities import MINUS

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Linear:
    """The identity, with the interface of `SymmetricLog`."""

    unit = "unit"

    def place(self, value: float) -> float:
        """Where a value stands."""
        return value

    def axis(self, low: float, high: float) -> Json:
        """What the axis needs to show the places from `low` to `high`."""
        return {"range": [low, high]}


@dataclass(frozen=True)
class SymmetricLog:
    """`sign(x) * log10(1 + |x| / threshold)`: linear around 0, a decade a unit far from it.

    Attributes:
        threshold: where the one goes over into the other, > 0.
    """

    threshold: float
    unit = "decade"

    def place(self, value: float) -> float:
        """Where a value stands."""
        return math.copysign(math.log10(1 + abs(value) / self.threshold), value)

    def axis(self, low: float, high: float) -> Json:
        """What the axis needs to show the places from `low` to `high`: its range, and ticks at 0 and powers of ten."""
        ticks = [tick for tick in self._ticks(max(-low, high)) if low <= self.place(tick) <= high]
        return {
            "range": [low, high],
            "tickvals": [self.place(tick) for tick in ticks],
            "ticktext": [_written(tick) for tick in ticks],
        }

    def _ticks(self, reach: float) -> Iterable[float]:
        """0 and powers of ten on both sides; every other one where there are many."""
        first, last = math.floor(math.log10(self.threshold)), math.floor(reach + math.log10(self.threshold))
        powers = [10.0**i for i in range(last, first, -1 if last - first < 6 else -2)]
        return sorted([*(-p for p in powers), 0.0, *powers])


def powers(span: tuple[float, float]) -> Json:
    """Ticks at powers of ten, at most about six, for a logarithmic axis of this range."""
    step = math.ceil((span[1] - span[0]) / 6)
    exponents = [i for i in range(math.ceil(span[0]), math.floor(span[1]) + 1) if i % step == 0]
    texts = [f"10{str(i).translate(RAISED)}" if i else "1" for i in exponents]
    return {"tickvals": [10.0**i for i in exponents], "ticktext": texts}


def _written(tick: float) -> str:
    text = f"{abs(tick):g}"
    return f"{MINUS}{text}" if tick < 0 else text
