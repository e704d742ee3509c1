"""What a measurement takes: products, seconds, and seconds in units of a gradient; and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flatwise.curvature import Operator
from flatwise.processes import Progress
from flatwise.vectors import Vector


class Meter:
    """Counts the products of an operator.

    Attributes:
        gradient: seconds that one gradient over all the data takes; set by whoever has taken one.
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self.gradient = 0.0
        self._total, self._progress = total, progress
        self._products, self._ahead = 0, 0

    def watched(self, operator: Operator) -> Operator:
        """The same operator, its products counted."""
        product = operator.product

        def counted(vector: Vector) -> Vector:
            self._products += 1
            self.tell()
            return product(vector)

        return replace(operator, product=counted)

    def tell(self, ahead: int = 0) -> None:
        """Say how far things are; `ahead` is work that was not a product, in products."""
        self._ahead += ahead
        self._progress(min(self._products + self._ahead, self._total), self._total)

    def took(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returns, and the `products`, `seconds` and `gradients` that it took.

        `gradients` are the seconds divided by those of one gradient over the same data.
        """
        products, started = self._products, time.perf_counter()
        made = make()
        seconds = time.perf_counter() - started
        spent = {"products": self._products - products, "seconds": seconds, "gradients": seconds / self.gradient}
        return made | spent
