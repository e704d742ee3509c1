"""What a run adds up while it goes: counts, and means over steps. In the checkpoint, so that a resumed run goes on counting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Tally:
    """Sums by name, and means by name over however many values came."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._means: dict[str, list[float]] = {}

    def count(self, name: str, amount: float) -> None:
        """Add to a sum."""
        self._sums[name] = self._sums.get(name, 0) + amount

    def note(self, values: Mapping[str, float]) -> None:
        """Take values into their means."""
        for name, value in values.items():
            total, number = self._means.get(name, [0.0, 0])
            self._means[name] = [total + value, number + 1]

    def total(self, name: str) -> float:
        """A sum; 0 when nothing was counted."""
        return self._sums.get(name, 0)

    def means(self) -> dict[str, float]:
        """Every mean, as `mean_NAME`."""
        return {f"mean_{name}": total / number for name, (total, number) in self._means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for the checkpoint."""
        return {"sums": dict(self._sums), "means": {name: list(pair) for name, pair in self._means.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._sums = dict(state["sums"])
        self._means = {name: list(pair) for name, pair in state["means"].items()}
