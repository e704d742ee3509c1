"""Edges of stability: how large the top Hessian eigenvalue can be before an optimizer's steps grow along its eigenvector.

All come from the local quadratic model of the loss, for a constant learning rate and no weight decay. Gradient norm, Hessian and
alignment belong to the same data and the same weights: the full batch, or for single steps the mini-batch.

Arguments are real numbers, or tensors that broadcast. The result is a float where all arguments are numbers, and else a tensor,
in at least float32. Every function raises TypeError for anything else, and ValueError for a value outside its range.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor


def gd_edge(lr: Number) -> Any:
    """The edge of gradient descent, `2 / lr`.

    Published: Cohen et al., arXiv 2103.00065.

    Args:
        lr: the learning rate, > 0.
    """
    return _evaluate(lambda lr: 2 / lr, lr=lr)


def heavy_ball_edge(lr: Number, momentum: Number, dampening: Number = 0.0) -> Any:
    """The edge of gradient descent with heavy-ball momentum, `(2 + 2 * momentum) / (lr * (1 - dampening))`.

    Published without dampening: Cohen et al., arXiv 2103.00065. Momentum as in `torch.optim.SGD`; dampening, which multiplies
    every gradient but the first with `1 - dampening`, acts as a smaller learning rate.

    Args:
        lr: the learning rate, > 0.
        momentum: in [0, 1).
        dampening: in [0, 1).
    """
    return _evaluate(
        lambda lr, beta, damp: (2 + 2 * beta) / (lr * (1 - damp)), lr=lr, momentum=momentum, dampening=dampening
    )


def adam_edge(lr: Number, beta1: Number = 0.9) -> Any:
    """The edge of Adam and its kin, `(2 + 2 * beta1) / (lr * (1 - beta1))`, for the eigenvalues of the preconditioned Hessian.

    Published: Cohen et al., arXiv 2207.14484. Adam is gradient descent with momentum that is a running mean, preconditioned with
    a diagonal P; while P stays as it is, steps grow where the largest eigenvalue of `P^-1 H` is above this edge: 38 / lr for a
    beta1 of 0.9. For RMSProp beta1 is 0.

    Args:
        lr: the learning rate, > 0; 1 where it is in the preconditioner already.
        beta1: of the running mean of gradients, in [0, 1).
    """
    return _evaluate(lambda lr, beta: (2 + 2 * beta) / (lr * (1 - beta)), lr=lr, beta1=beta1)


def nesterov_edge(lr: Number, momentum: Number) -> Any:
    """The edge of gradient descent with Nesterov's momentum, `(2 + 2 * momentum) / (lr * (1 + 2 * momentum))`.

    Published: Cohen et al., arXiv 2103.00065. Momentum as in `torch.optim.SGD(nesterov=True)`, constant.

    Args:
        lr: the learning rate, > 0.
        momentum: in [0, 1).
    """
    return _evaluate(lambda lr, beta: (2 + 2 * beta) / (lr * (1 + 2 * beta)), lr=lr, momentum=momentum)


def sam_edge(lr: Number, rho: Number, gradient_norm: Number, momentum: Number = 0.0) -> Any:
    """The edge of SAM, `4 / (lr * (1 + sqrt(1 + 8 * rho / (lr * gradient_norm))))` without momentum.

    It is the positive root of `lr * x + lr * rho * x**2 / gradient_norm = 2`: always below `2 / lr`, which it is at rho
    0, and falling to 0 with the gradient norm. Published without momentum: Long and Bartlett, arXiv 2309.12488. There,
    full-batch SAM on a quadratic settles in steps that turn back along the top eigenvector, and then the curvature is
    this edge exactly.

    With momentum it is derived here: the edge at `lr / (1 + momentum)`. At a gradient norm that is held constant, that
    is when steps along the eigenvector grow; and wherever the steps turn back each time, the curvature is exactly this
    edge. But with a momentum of 0.7 and more, and a curvature well below `2 / lr`, SAM on a quadratic mostly settles in
    longer cycles, where the curvature is 0.3 to 0.8 of this edge: then it is only a ceiling, and not one that is
    reached.

    Over mini-batches the edge fluctuates with the gradient norm. On a quadratic whose batches have different minima,
    the median of curvature / edge stays within 2 % of 1 while that spread is below a third of SAM's bounces, and falls
    (to 0.7 at three times).

    Args:
        lr: the learning rate, > 0.
        rho: the radius, >= 0.
        gradient_norm: of the gradient at the weights, not at the displaced ones, >= 0.
        momentum: in [0, 1).
    """
    return _evaluate(
        lambda lr, rho, norm, beta: _edge(lr / (1 + beta), rho, norm),
        lr=lr,
        rho=rho,
        gradient_norm=gradient_norm,
        momentum=momentum,
    )


def usam_edge(lr: Number, rho: Number) -> Any:
    """The edge of SAM with the displacement `rho * gradient`, not normalised: `sam_edge` at gradient norm 1.

    It is the positive root of `lr * x + lr * rho * x**2 = 2`, whatever the gradient. Derived from the quadratic model here.

    Args:
        lr: the learning rate, > 0.
        rho: the factor of the gradient, >= 0.
    """
    return _evaluate(lambda lr, rho: _edge(lr, rho, torch.ones_like(lr)), lr=lr, rho=rho)


def eigen_sam_edge(lr: Number, rho: Number, alpha: Number, gradient_norm: Number, alignment: Number) -> Any:
    """The edge of Eigen-SAM: SAM's with `rho * kappa` in place of rho, `kappa = 1 + alpha * (1 - c**2) / abs(c)`.

    Derived here, not published: on a quadratic loss the part of the weights along an eigenvector v is multiplied by
    `1 - lr * x * (1 + rho * kappa * x / gradient_norm)` if v is what Eigen-SAM tracks. With a poor alignment c it is
    far below SAM's, and at c = 0 it is 0. Where several eigenvalues are close, the tracked vector is a mixture of their
    eigenvectors: then c is its cosine, not that of the top eigenvector, and the edge is one for its curvature v'Hv.

    It is no ceiling: the push along v does not shrink with the component there, so at any curvature below SAM's edge
    steps go back and forth with the c for which it is this edge.

    Args:
        lr: the learning rate, > 0.
        rho: the radius, >= 0.
        alpha: the weight of the eigenvector, >= 0; at 0 this is `sam_edge`.
        gradient_norm: of the gradient at the weights, >= 0.
        alignment: the cosine c of the gradient with the tracked v, in [-1, 1] up to rounding; its sign does not matter.
    """
    return _evaluate(_eigen_edge, lr=lr, rho=rho, alpha=alpha, gradient_norm=gradient_norm, alignment=alignment)


def _edge(lr: Tensor, rho: Tensor, norm: Tensor) -> Tensor:
    """SAM's edge without cancellation, and without a division by the norm, which may be zero."""
    root = norm.sqrt()
    edge = 4 * root / (lr * (root + (norm + 8 * rho / lr).sqrt()))
    return torch.where(rho == 0, 2 / lr, edge)


def _eigen_edge(lr: Tensor, rho: Tensor, alpha: Tensor, norm: Tensor, alignment: Tensor) -> Tensor:
    """SAM's edge with rho and norm both times abs(c), as `rho * kappa` is infinite at c = 0."""
    c = alignment.abs().clamp(max=1)
    edge = _edge(lr, rho * (c + alpha * (1 - c * c)), norm * c)
    return torch.where(alpha == 0, _edge(lr, rho, norm), torch.where(rho == 0, 2 / lr, edge))


# --- numbers and tensors alike ----------------------------------------------------------------------------------------

_POSITIVE = "> 0", lambda t: t > 0
_NOT_NEGATIVE = ">= 0", lambda t: t >= 0
_BELOW_ONE = ">= 0 and < 1", lambda t: (t >= 0) & (t < 1)
_RANGES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "lr": _POSITIVE,
    "rho": _NOT_NEGATIVE,
    "alpha": _NOT_NEGATIVE,
    "gradient_norm": _NOT_NEGATIVE,
    "momentum": _BELOW_ONE,
    "dampening": _BELOW_ONE,
    "beta1": _BELOW_ONE,
    "alignment": ("in [-1, 1]", lambda t: t.abs() <= 1 + 1e-6),
}


def _evaluate(formula: Callable[..., Tensor], **arguments: Any) -> Any:
    """The formula of the checked arguments, in their common dtype."""
    for name, value in arguments.items():
        if not _is_real(value):
            raise TypeError(f"{name} must be a real number or a tensor of such, got {value!r}")
    tensors = [a for a in arguments.values() if isinstance(a, Tensor)]
    dtype = torch.float32 if tensors else torch.float64
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    result = formula(*(_in_range(name, _tensor(value, dtype)) for name, value in arguments.items()))
    return result if tensors else result.item()


def _is_real(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dtype != torch.bool and not value.is_complex()
    return not isinstance(value, bool) and isinstance(value, Real)


def _tensor(value: Number, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else torch.tensor(float(value), dtype=dtype)


def _in_range(name: str, tensor: Tensor) -> Tensor:
    words, inside = _RANGES[name]
    wrong = tensor[~(torch.isfinite(tensor) & inside(tensor))]
    if len(wrong):
        raise ValueError(f"{name} must be finite and {words}, got {wrong[0].item()}")
    return tensor
