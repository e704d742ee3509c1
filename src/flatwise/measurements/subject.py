"""What is measured: an objective, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from flatwise.measurements.plan import Plan
from flatwise.objective import Objective


@dataclass(frozen=True)
class Subject:
    """A network on data, ready to be measured.

    Attributes:
        objective: its loss.
        data: which samples, as JSON values.
        step: the training step of the weights, where it is known.
    """

    objective: Objective
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    step: int | None = None


class Source(Protocol):
    """Where a subject comes from: plain values, so that another process can build it."""

    @property
    def label(self) -> str:
        """What it is called in messages."""
        ...

    def build(self, plan: Plan) -> Subject:
        """The subject as the plan wants it."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Itself as JSON values, with a `kind`."""
        ...
