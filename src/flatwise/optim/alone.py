"""A step without passes: after a plain backward, where the method asks for nothing else at this step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from flatwise.methods import Evaluation, Method, State
from flatwise.optim import views
from flatwise.optim.stage import KnownNorm
from flatwise.vectors import Scalar, Vector


@dataclass(frozen=True)
class Alone:
    """What is known of such a step: everything but its loss, which nobody told.

    Attributes:
        gradient_norm: of the gradient that was found.
        direction_norm: finite gradients may make a direction that is not.
        notes: the method's own numbers.
        loss: None.
    """

    gradient_norm: Tensor
    direction_norm: Tensor
    notes: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    loss: None = None

    def finite(self) -> bool:
        """Wait for the device, as after passes: whether the step may be taken."""
        return bool(torch.isfinite(self.gradient_norm + self.direction_norm))

    def diagnostics(self) -> dict[str, float]:
        """The numbers of this step; reading them waits for the device."""
        numbers = {"loss": nan, "gradient_norm": self.gradient_norm, "displacement_norm": 0.0, "evaluations": 1}
        return {name: float(value) for name, value in (numbers | dict(self.notes)).items()}


@torch.no_grad()
def without_passes(method: Method, state: State, gradient: Vector) -> tuple[Vector, Alone] | None:
    """The direction of a method that asks for nothing but the gradient at the weights; None where it asks for more."""
    dialogue = method.passes(state)
    if {"loss", "momentum"} & views.needed(method) or next(dialogue).vector is not None:
        return None
    known = KnownNorm()
    norm = known.of(dense(gradient))  # before the method writes into it
    try:
        dialogue.send(Evaluation(torch.tensor(nan), gradient))
    except StopIteration as finished:
        direction: Vector = finished.value
        return direction, Alone(norm, known.of(dense(direction)), state.notes)
    return None


def dense(vector: Vector) -> Vector:
    """The values alone of what is sparse: passes refuse such gradients, but a base optimizer can step along them."""
    return [t.coalesce().values() if t is not None and t.is_sparse else t for t in vector]
