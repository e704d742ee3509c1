"""The Gauss-Newton part of the Hessian, and the rest: `H = G + R`.

For a loss l of the outputs z of a model, `G = J' (d2l / dz2) J` with the Jacobian J of the outputs: what the loss curves by.
R is what the network curves by, weighted with the slopes `dl / dz`, so it vanishes where a network fits all of its data.
For a loss that is convex in the outputs G is positive semi-definite, and for cross-entropy it is the Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.algebra import combined, noted
from flatwise.curvature.hessian import hessian
from flatwise.curvature.lengths import SHARE
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Engine, record
from flatwise.objective import Objective
from flatwise.objective.arguments import checked_loss, fitting
from flatwise.objective.derivatives import gradient, twice_differentiable
from flatwise.objective.preflight import few
from flatwise.vectors import Vector

Outputs: TypeAlias = Callable[[Any, Any], Tensor]
Criterion: TypeAlias = Callable[[Tensor, Any], Tensor]

TOLERANCE = 100.0
"""In units of the machine epsilon: how far the loss of the outputs may be from the objective's."""


@dataclass(frozen=True)
class Split:
    """The Hessian and its parts, each an operator.

    Attributes:
        hessian: H.
        gauss_newton: G, what the loss curves by.
        residual: `R = H - G`, what the network curves by. A product costs one of each.
    """

    hessian: Operator
    gauss_newton: Operator
    residual: Operator


def gauss_newton(
    objective: Objective, outputs: Outputs, loss: Criterion, *, step: int | None = None, check: bool = True
) -> Operator:
    """The (generalised) Gauss-Newton matrix of an objective whose loss is `loss(outputs(model, batch), batch)`.

        G = gauss_newton(objective, lambda model, batch: model(batch[0]), lambda z, batch: cross_entropy(z, batch[1]))

    Products are exact: the Jacobian's by differentiating its transpose, the loss's by differentiating twice.

    Args:
        objective: the loss, on its data, in its mode, weighted by samples as always.
        outputs: from model and batch to a tensor of any shape, such as logits.
        loss: from these and the batch to the mean loss over the batch. It must be all of the objective's loss.
        step: the training step of the weights, for the record.
        check: whether to make sure that two evaluations agree, and on some samples that this is the objective's loss.

    Raises:
        TypeError, ValueError: outputs that are no tensor of real numbers or do not depend on the weights, a loss that is no
            scalar, or one that is not the objective's.
        RuntimeError: the model cannot be differentiated twice, or two evaluations do not agree.
    """
    found = objective.preflight()
    if not found.twice:
        raise RuntimeError(f"no Gauss-Newton products: {found.reason}")
    product = _Product(objective, outputs, loss)
    if check:
        objective.check()
        product.check()
    return Operator(
        product, objective.weights, 0.0, record(objective, "double", f"Gauss-Newton; {found.reason}", 0.0, step)
    )


def split_hessian(
    objective: Objective,
    outputs: Outputs,
    loss: Criterion,
    engine: Engine | Literal["auto"] = "auto",
    *,
    step: int | None = None,
    check: bool = True,
) -> Split:
    """The Hessian of an objective, its Gauss-Newton part, and the difference.

    Args:
        objective, outputs, loss, step, check: as for `gauss_newton`.
        engine: of the Hessian, as for `hessian`.

    Raises:
        TypeError, ValueError, RuntimeError: as `gauss_newton` and `hessian`.
    """
    whole = hessian(objective, engine, step=step, check=check)
    part = gauss_newton(objective, outputs, loss, step=step, check=check)
    return Split(whole, part, noted(combined(whole, part, -1.0), "less Gauss-Newton"))


class _Product:
    """The product with a vector."""

    def __init__(self, objective: Objective, outputs: Outputs, loss: Criterion) -> None:
        self._objective = objective
        self._outputs = outputs
        self._loss = loss

    def __call__(self, vector: Vector) -> Vector:
        """The Gauss-Newton matrix times the vector."""
        parameters = self._objective.parameters()
        along = fitting(vector, parameters)
        with twice_differentiable(self._objective.model):
            found = self._objective.mean(lambda part: self._of_batch(part.batch, parameters, along), parameters)
        return [v.to(p.dtype) for v, p in zip(found, parameters, strict=True)]

    def check(self) -> None:
        """Make sure, on some samples, that the loss of the outputs is the objective's."""
        some = few(self._objective, share=SHARE)
        whole = float(some.value())
        number = some.parameters()[0].detach().new_zeros(())
        split = float(some.mean(lambda part: [self._value(part.batch)], [number])[0])
        allowed = TOLERANCE * V.epsilon(some.weights) * max(abs(whole), abs(split))
        if not abs(whole - split) <= allowed and whole == whole:
            raise ValueError(
                f"loss(outputs(model, batch), batch) is {split:.6g} on some samples, the objective's loss {whole:.6g}; they must "
                "be the same function, without regularisers that depend on the weights directly"
            )

    def _value(self, batch: Any) -> Tensor:
        return checked_loss(self._loss(self._checked(batch), batch))

    def _checked(self, batch: Any) -> Tensor:
        return _checked_outputs(self._outputs(self._objective.model, batch))

    def _of_batch(self, batch: Any, parameters: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
        outputs = self._checked(batch)
        change = _forward(outputs, parameters, along)
        place = outputs.detach().requires_grad_()
        (slope,) = gradient([checked_loss(self._loss(place, batch))], [place], again=True)
        if not slope.requires_grad:  # the loss is linear in the outputs
            return [torch.zeros_like(p, requires_grad=False) for p in parameters]
        (curved,) = gradient([slope], [place], [change.to(slope.dtype)])
        return gradient([outputs], parameters, [curved.to(outputs.dtype)])


def _forward(outputs: Tensor, parameters: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    """The Jacobian times `along`: its transpose is linear in what it is applied to, and this is the derivative of that."""
    applied = torch.zeros_like(outputs, requires_grad=True)
    transposed = gradient([outputs], parameters, [applied], again=True)
    used = [(t, v.to(t.dtype)) for t, v in zip(transposed, along, strict=True) if t.requires_grad]
    if not used:
        return torch.zeros_like(outputs, requires_grad=False)
    (change,) = gradient([t for t, _ in used], [applied], [v for _, v in used])
    return change


def _checked_outputs(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise TypeError(f"outputs must return a tensor of real numbers, such as logits, got {type(outputs).__name__}")
    if not outputs.requires_grad:
        raise ValueError("the outputs do not depend on any parameter that requires grad; were they detached?")
    return outputs
