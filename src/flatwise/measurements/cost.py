"""What a measurement will take, before anything of it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise.measurements.plan import Plan
from flatwise.measurements.quantities import expected_products, held_vectors
from flatwise.measurements.subject import Subject
from flatwise.training.progress import duration


@dataclass(frozen=True)
class Expense:
    """What one network takes: estimates all of them.

    Attributes:
        samples: how many it is measured on.
        parameters: the number of coordinates.
        gradients: passes for the loss, its gradient, and the check that two evaluations agree.
        products: with the Hessian, by quantity.
        seconds: on this machine, as idle as it is now.
        memory: bytes at the peak besides weights and data: of a product, and of the Vectors that are held.
        micro_batch: into how many samples at once batches are cut, to stay below `max_memory`; None where they are not.
    """

    samples: int
    parameters: int
    gradients: int
    products: dict[str, int]
    seconds: float
    memory: float
    micro_batch: int | None

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {number:,}" for name, number in self.products.items())
        cut = f", {self.micro_batch:,} samples at once" if self.micro_batch else ""
        return (
            f"{self.samples:,} samples, {self.parameters:,} parameters: {self.gradients} gradients and about "
            f"{sum(self.products.values()):,} products ({parts}), {duration(self.seconds)}, {amount(self.memory)}{cut}"
        )


GRADIENTS = 4
"""The loss, two evaluations that must agree, and the gradient, twice where its angle to the top eigenvector is wanted."""


def expense(subject: Subject, plan: Plan) -> Expense:
    """The expense of one network, from evaluations on a few of its samples.

    Raises:
        ValueError: `max_memory` is too small for a single sample.
    """
    plan, limit = plan.settled(), plan.memory()
    forecast = subject.objective.uncut().forecast()
    products = expected_products(plan)
    cut = None if limit is None else forecast.micro_batch(limit)
    return Expense(
        samples=forecast.samples,
        parameters=forecast.parameters,
        gradients=GRADIENTS,
        products=products,
        seconds=forecast.seconds(GRADIENTS, sum(products.values())),
        memory=forecast.memory(cut) + held_vectors(plan) * forecast.vector,
        micro_batch=cut,
    )


def amount(number: float) -> str:
    """Bytes with a unit."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
