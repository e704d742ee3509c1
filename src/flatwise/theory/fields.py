"""What one step of a method follows, as a function of the weights: SAM's gradient, and its expansion in rho.

With `u = g / |g|`, held fixed: `g(w + rho u) = g + rho * H u + rho^2 / 2 * d3f[u, u] + ...` (arXiv 2501.12666;
2301.08203 to first order).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp

from flatwise.methods.checks import non_negative
from flatwise.theory.ensemble import Field, Flat

ORDERS = (1, 2, 3)


def gradient(loss: Flat) -> Flat:
    """The field of gradient descent."""
    return grad(loss)


def sam(rho: float) -> Field:
    """The field of SAM, to all orders: the gradient at `w + rho * g / |g|`; zero where the gradient is."""
    non_negative("rho", rho)

    def field(loss: Flat) -> Flat:
        slope = grad(loss)
        return lambda x: slope(x + rho * _unit(slope(x)))

    return field


def sam_expansion(rho: float, order: int) -> Field:
    """SAM's field up to a power of rho: order 1 is the gradient, 2 adds `rho * H u`, 3 adds `rho^2 / 2 * d3f[u, u]` too.

    Args:
        rho: >= 0.
        order: 1, 2 or 3, as the equations are counted: the order of the derivatives of the loss.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """
    non_negative("rho", rho)
    if order not in ORDERS:
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")

    def field(loss: Flat) -> Flat:
        return lambda x: _expanded(grad(loss), x, rho, order)

    return field


def curvature_slope(loss: Flat, x: Tensor, u: Tensor) -> Tensor:
    """`d3f[u, u]`, the gradient of `u'Hu` at a fixed u: the second derivative of the gradient along u."""

    return _along(lambda y: _along(grad(loss), y, u), x, u)


def _expanded(slope: Flat, x: Tensor, rho: float, order: int) -> Tensor:
    g = slope(x)
    u = _unit(g)
    if order >= 2:
        g = g + rho * _along(slope, x, u)
    if order == 3:
        g = g + rho**2 / 2 * _along(lambda y: _along(slope, y, u), x, u)
    return g


def _along(function: Flat, x: Tensor, u: Tensor) -> Tensor:
    """The derivative of a function at x in the direction u."""
    found: tuple[Tensor, Tensor] = jvp(function, (x,), (u,))  # pyright: ignore[reportAssignmentType]
    return found[1]


def _unit(g: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(g)
    return g * torch.where(size > 0, 1 / size, torch.zeros_like(size))
