"""How far from the weights differences of gradients are taken, and how exact they are then.

Short differences are noisy, long ones see the curvature change. Where the two balance depends on the precision of the gradient
(of its dtype, or of an autocast region nobody sees from outside), on the size of the weights and on third derivatives. Kinks, as
of ReLU, count as curvature at any length. So products at several lengths, along a direction of high curvature, are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from flatwise import vectors as V
from flatwise.objective import Objective
from flatwise.objective.differences import reach
from flatwise.objective.preflight import few
from flatwise.vectors import Vector

FACTOR = 4.0
"""From one length to the next."""

FURTHEST = 4
"""How many times longer or shorter at most."""

Engine: TypeAlias = Callable[[Objective, float], Callable[[Vector], Vector]]
"""From an objective and a length to a function that takes products."""

POWERS = 2
"""Power iterations towards a direction of high curvature."""

SHARE = 8
"""The part of the first batch on which lengths are compared is one in so many."""

GOOD = 40.0
"""In units of epsilon**(2/3), the error of a balanced central difference: two products this close need no other length."""


@dataclass
class Ladder:
    """Products at lengths `start * FACTOR ** k`, and how far neighbours are apart.

    Attributes:
        product: from a length to the product of one and the same vector.
        start: the length that should be right.
    """

    product: Callable[[float], Vector]
    start: float
    _products: dict[int, Vector] = field(default_factory=dict)

    def gap(self, k: int) -> float:
        """The distance of the products at `k` and `k + 1`, relative to the larger: an estimate of the error between them."""
        a, b = self._at(k), self._at(k + 1)
        larger = float(torch.maximum(V.norm(a), V.norm(b)))
        apart = float(V.norm(V.add(a, b, -1.0))) / larger if larger else 0.0
        return apart if math.isfinite(apart) else math.inf

    def best(self, good: float) -> tuple[float, float]:
        """The length between the closest neighbours, and their distance.

        From the start it goes to shorter lengths while that helps, else to longer ones, until two are close enough.
        """
        gaps = {0: self.gap(0)}
        for step in (-1, 1):
            k = 0
            while min(gaps.values()) > good and gaps[k] == min(gaps.values()) and abs(k) < FURTHEST:
                k += step
                gaps[k] = self.gap(k)
        k = min(gaps, key=lambda k: gaps[k])
        return self.start * FACTOR ** (k + 0.5), gaps[k]

    def _at(self, k: int) -> Vector:
        if k not in self._products:
            self._products[k] = self.product(self.start * FACTOR**k)
        return self._products[k]


def settle(objective: Objective, engine: Engine, guess: float) -> tuple[float, float]:
    """The best length for an engine, from some samples of the first batch, and the relative error of its products on all of it.

    Args:
        objective: what will be differentiated.
        engine: takes differences of this length.
        guess: the length that should be right.
    """
    some = few(objective, share=SHARE)
    direction = _curved(some, engine(some, guess))
    length, error = _ladder(some, engine, direction, guess).best(GOOD * V.epsilon(objective.weights) ** (2 / 3))
    whole = few(objective, share=1)
    return length, max(error, _ladder(whole, engine, direction, length).gap(0))


def _ladder(objective: Objective, engine: Engine, direction: Vector, middle: float) -> Ladder:
    return Ladder(lambda length: engine(objective, length)(direction), middle / math.sqrt(FACTOR))


def _curved(objective: Objective, product: Callable[[Vector], Vector]) -> Vector:
    """A direction of high curvature, where truncation shows: some power iterations from the gradient."""
    direction: Vector = objective.gradient()
    for _ in range(POWERS):
        image = product(direction)
        direction = V.unit(image if _is_usable(image) else V.random_like(direction, objective.seed))
    return direction


def _is_usable(vector: Vector) -> bool:
    return 0 < float(V.norm(vector)) < math.inf


def central_guess(weights: Vector) -> float:
    """The length at which rounding and truncation of a central difference should balance."""
    return reach(weights)


def one_sided_guess(weights: Vector) -> float:
    """The same for a one-sided difference, whose truncation is of first order: the square root of epsilon."""
    return math.sqrt(V.epsilon(weights)) * (float(V.norm(weights)) or 1.0)
