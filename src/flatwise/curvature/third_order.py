"""How curvature changes with the weights: the gradient of `v'Hv` at a fixed v, a third derivative of the loss.

Three ways: differentiating three times; differences of Hessian products at two places, where autograd's third derivative is wrong
(torch's fused LayerNorm) or missing; and second differences of gradients, where there is no second derivative either.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.lengths import FACTOR, GOOD, SHARE, Ladder
from flatwise.curvature.record import Record, record
from flatwise.objective import Objective
from flatwise.objective.arguments import fitting
from flatwise.objective.averages import all_agree
from flatwise.objective.derivatives import gradient, twice_differentiable
from flatwise.objective.differences import reach
from flatwise.objective.preflight import few, first_sentence
from flatwise.vectors import Vector

ThirdOrder: TypeAlias = Literal["triple", "products", "gradients"]
Measure: TypeAlias = Callable[[Objective, Vector, float], list[Tensor]]
"""From an objective, a unit vector and a length to `v'Hv`, followed by its gradient."""

AGREEMENT = 0.003
"""How far, relatively, a third derivative may be from differences: those of smooth losses are right to 3e-4 in float32."""

LENGTHS = 5
"""How many differences it is compared with: where a loss curves sharply only short ones are right."""

COARSE = 0.1
"""The relative error of differences from which on a warning says so."""


@dataclass(frozen=True)
class CurvatureGradient:
    """The gradient of `v'Hv` with respect to the weights, v held fixed: the third derivative of the loss applied to v twice.

    For a unit eigenvector of a simple eigenvalue it is the gradient of the eigenvalue.

    Attributes:
        vector: the gradient, over all parameters of the objective.
        value: `v'Hv`.
        error: the estimated relative error of the gradient; 0 where it is exact up to rounding.
        engine: how it was computed: "triple", "products" or "gradients".
        record: of the measurement; its reason says why so.
    """

    vector: Vector
    value: float
    error: float
    engine: ThirdOrder
    record: Record


def curvature_gradient(
    objective: Objective,
    along: Sequence[Tensor | None],
    engine: ThirdOrder | Literal["auto"] = "auto",
    *,
    step: int | None = None,
    check: bool = True,
) -> CurvatureGradient:
    """The gradient of `v'Hv` with respect to the weights, at a fixed vector v.

    Args:
        objective: the loss.
        along: v, any Vector but zero; None counts as zero.
        engine: "triple" differentiates three times: exact, 3 to 6 gradients. "products" takes differences of Hessian products on
            both sides of the weights, at two lengths: 8 to 13. "gradients" takes second differences of gradients, at two
            lengths: 5 to 8, for whatever can be trained, and the least exact: see `error`. "auto" is the first of them that is
            right: autograd's third derivative can be wrong, so it is compared with differences on two samples. Kinks of ReLU
            count for differences and do not for "triple".
        step: the training step of the weights, for the record.
        check: whether to make sure, once for each objective, that two evaluations agree.

    Raises:
        ValueError: an unknown engine, or a vector that is zero, not finite, or of other shapes than the weights.
            A result that is not finite.
        RuntimeError: "triple" or "products" is not possible; or two evaluations do not agree.
    """
    if engine not in (*get_args(ThirdOrder), "auto"):
        raise ValueError(f'engine must be "auto", "triple", "products" or "gradients", got {engine!r}')
    vector: Vector = list(fitting(along, objective.parameters()))
    length = float(V.norm(vector))
    if not 0 < length < math.inf:
        raise ValueError(f"the vector has norm {length}; it must be finite and above 0")
    if check:
        objective.check()
    unit = V.scale(vector, 1 / length)
    chosen, reason = _choose(objective, unit, engine)
    value, found, error = _exact(objective, unit) if chosen == "triple" else _settled(objective, unit, chosen)
    _check_result(found, error)
    how = record(objective, "differences" if chosen == "gradients" else "double", reason, error, step)
    return CurvatureGradient(V.scale(found, length**2), value * length**2, error, chosen, how)


def _check_result(found: Vector, error: float) -> None:
    if not torch.isfinite(V.norm(found)):
        raise ValueError("the third derivative is NaN or infinite; are the weights still finite?")
    if error > COARSE:
        warnings.warn(
            f"differences over two lengths agree to {error:.0%} only: the loss has kinks (ReLU), or float32 is too coarse for "
            'them. engine="triple" does not see kinks',
            stacklevel=3,
        )


# --- which way --------------------------------------------------------------------------------------------------------


def _choose(objective: Objective, unit: Vector, engine: ThirdOrder | Literal["auto"]) -> tuple[ThirdOrder, str]:
    found = objective.preflight()
    if engine == "gradients":
        return engine, "asked for: second differences of gradients"
    if not found.twice:
        _refuse(engine, found.reason, "gradients")
        return "gradients", f"second differences of gradients, as {found.reason}"
    if engine == "products":
        return engine, "asked for: differences of Hessian products"
    wrong = _trouble(objective, unit)
    if not all_agree(objective.groups, wrong is None, objective.device):
        why = wrong or "another process could not differentiate three times"
        _refuse(engine, why, "products")
        return "products", f"differences of Hessian products, as {why}"
    return "triple", "differentiated three times"


def _refuse(engine: str, why: str, instead: str) -> None:
    if engine != "auto":
        raise RuntimeError(f'engine="{engine}" is not possible: {why}. engine="{instead}" is')


def _trouble(objective: Objective, unit: Vector) -> str | None:
    """What is wrong with the third derivative of autograd, on two samples; None if nothing is."""
    some = few(objective)
    if not some.data:
        return None
    try:
        _, *found = _triple(some.alone(), unit)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return f"it cannot be differentiated three times: {first_sentence(error)}"
    if (apart := _refuted(some.alone(), unit, list(found))) > 0:
        return f"autograd's third derivative is wrong: {apart:.1%} off differences (torch's fused LayerNorm is a case)"
    return None


def _refuted(objective: Objective, unit: Vector, found: Vector) -> float:
    """How far it is, relatively, from differences of products that agree with each other far better; 0 where there are none.

    Differences that meet kinks, or that are rounding, do not agree with each other either, and say nothing.
    """
    lengths = [reach(objective.weights) / FACTOR**k for k in range(LENGTHS)]
    differences = [list(_products(objective, unit, length)[1:]) for length in lengths]
    gaps = [(_apart(a, b), _apart(a, found)) for a, b in pairwise(differences)]
    refuting = [(gap, apart) for gap, apart in gaps if apart > max(AGREEMENT, 4 * gap)]
    return min(refuting, default=(0.0, 0.0))[1]


def _apart(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    """The relative distance of two vectors."""
    larger = torch.maximum(V.norm(a), V.norm(b))
    return float(V.norm(V.add(a, b, -1.0)) * V.reciprocal(larger))


# --- three ways -------------------------------------------------------------------------------------------------------


def _exact(objective: Objective, unit: Vector) -> tuple[float, Vector, float]:
    value, *found = _triple(objective, unit)
    return float(value), list(found), 0.0


def _settled(
    objective: Objective, unit: Vector, engine: Literal["products", "gradients"]
) -> tuple[float, Vector, float]:
    """At the length that is best on some samples; the result at twice that length tells the error, and corrects the value."""
    measure, power = _DIFFERENCES[engine]
    guess = V.epsilon(objective.weights) ** (power - 1 / 3) * reach(objective.weights)
    some = few(objective, share=SHARE)
    ladder = Ladder(lambda length: list(measure(some, unit, length)[1:]), guess / math.sqrt(FACTOR))
    length, _ = ladder.best(GOOD * V.epsilon(objective.weights) ** (2 * power))
    value, *found = measure(objective, unit, length)
    other, *further = measure(objective, unit, 2 * length)
    return float(4 * value - other) / 3, list(found), _apart(further, list(found))


def _triple(objective: Objective, unit: Vector) -> list[Tensor]:
    """Differentiated three times."""
    parameters = objective.parameters()
    along, number = fitting(unit, parameters), parameters[0].detach().new_zeros(())
    with twice_differentiable(objective.model):
        return objective.mean(lambda p: _third(objective.loss(p.batch), parameters, along), [number, *parameters])


def _third(loss: Tensor, parameters: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    derivative = loss
    for _ in range(2):
        derivative = _inner(gradient([derivative], parameters, again=True), along)
        if not derivative.requires_grad:  # the loss is linear or quadratic in the weights
            return [derivative, *(torch.zeros_like(p, requires_grad=False) for p in parameters)]
    return [derivative, *gradient([derivative], parameters)]


def _inner(some: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    return torch.stack([(s * v.to(s.dtype)).sum() for s, v in zip(some, along, strict=True)]).sum()


def _products(objective: Objective, unit: Vector, length: float) -> list[Tensor]:
    """From Hessian products ahead and behind: an error of second order in the length."""
    with objective.displaced() as place:
        place.to(unit, length)
        ahead = objective.differentiated_twice(unit)
        place.to(unit, -length)
        behind = objective.differentiated_twice(unit)
    value = (V.dot(unit, ahead) + V.dot(unit, behind)) / 2
    return [value, *V.present(V.scale(V.add(ahead, behind, -1.0), 0.5 / length))]


def _gradients(objective: Objective, unit: Vector, length: float) -> list[Tensor]:
    """From gradients ahead, here and behind: an error of second order in the length, and rounding divided by its square."""
    with objective.displaced() as place:
        place.to(unit, length)
        _, *ahead = objective.wide_value_and_gradient()
        place.to(unit, -length)
        _, *behind = objective.wide_value_and_gradient()
        place.back()
        _, *here = objective.wide_value_and_gradient()
    value = (V.dot(unit, list(ahead)) - V.dot(unit, list(behind))) / (2 * length)
    V.add_(ahead, behind, 1.0)
    V.add_(ahead, here, -2.0)
    return [value, *V.present(V.scale(list(ahead), 1 / length**2))]


_DIFFERENCES: dict[str, tuple[Measure, float]] = {"products": (_products, 1 / 3), "gradients": (_gradients, 1 / 4)}
"""And the power of epsilon that is, relative to the norm of the weights, the length at which rounding and truncation balance."""
