"""Stochastic differential equations of SAM: the second-order and the third-order one, from the losses of the mini-batches.

One step of the method, with learning rate `lr` and a mini-batch drawn from M of them, follows `b_k(w)`, and takes time
`lr`:

    dX = -b(X) dt + sqrt(lr / M) * sum_k (b_k(X) - b(X)) dW_k,    b = mean of b_k over the batches.

Its noise has the covariance of a mini-batch's `b_k`, times lr, and M Brownian motions drive it: no covariance matrix is
formed. With `b_k` SAM's expansion to first order in rho it is the second-order equation (arXiv 2301.08203), but with the
noise of the expansion itself, which keeps a term rho^2 that the published one drops. With the expansion to second order
it is the third-order one (arXiv 2501.12666; this form is a derivation of ours, the printed theorem was not at hand).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatwise.methods.checks import positive
from flatwise.objective import Objective
from flatwise.theory.ensemble import Ensemble, Field, ensemble_of
from flatwise.theory.fields import curvature_slope, gradient, sam_expansion

AGREEMENT = 0.01
"""How far, relatively, the third derivative may be from a difference of second ones."""


@dataclass(frozen=True)
class SDE:
    """An equation for paths through the weights of a network.

    Attributes:
        ensemble: the losses.
        field: `b_k`, from the loss of a batch.
        lr: the learning rate, the time of one step; > 0.
        name: for legends.
    """

    ensemble: Ensemble
    field: Field
    lr: float
    name: str

    def drift(self, x: Tensor) -> Tensor:
        """`-b(x)`: [P, d] from [P, d]."""
        return -self.ensemble.fields(self.field, x).mean(0)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The drift [P, d], and what multiplies each Brownian motion [M, P, d]."""
        found = self.ensemble.fields(self.field, x)
        mean = found.mean(0)
        return -mean, (found - mean) * (self.lr / len(found)) ** 0.5


def sgd_sde(objective: Objective | Ensemble, lr: float) -> SDE:
    """The equation of plain stochastic gradient descent.

    Args:
        objective: the loss; its batches are the mini-batches.
        lr: the learning rate; > 0.

    Raises:
        TypeError, ValueError: lr is out of its range, or the objective does not serve (see `Ensemble`).
    """
    positive("lr", lr)
    return SDE(ensemble_of(objective), gradient, lr, "SGD, SDE")


def sam_sde(objective: Objective | Ensemble, lr: float, rho: float, order: int = 3) -> SDE:
    """The equation of SAM of the given order.

    Args:
        objective: the loss; its batches are the mini-batches.
        lr: the learning rate; > 0.
        rho: SAM's radius; >= 0.
        order: 2 or 3 (1 is that of plain gradient descent).

    Raises:
        TypeError, ValueError: an argument is out of its range, or the objective does not serve (see `Ensemble`).
        RuntimeError: order 3 of a loss whose third derivative is wrong in torch, such as one with its fused LayerNorm.
    """
    positive("lr", lr)
    field, ensemble = sam_expansion(rho, order), ensemble_of(objective)
    if order == 3:
        _check_third_derivative(ensemble)
    return SDE(ensemble, field, lr, f"SAM, SDE of order {order}")


def _check_third_derivative(ensemble: Ensemble) -> None:
    """Compare with second differences of gradients, at several lengths: kinks and rounding spoil some of them."""
    x = ensemble.weights.unsqueeze(0)
    u = torch.nn.functional.normalize(ensemble.fields(gradient, x)[0], dim=-1)[0]
    found = ensemble.fields(lambda loss: lambda y: curvature_slope(loss, y, u), x)[0, 0]
    size = torch.linalg.vector_norm(x)
    here = ensemble.fields(gradient, x)[0, 0]
    apart = []
    for length in [float(size) * 4.0**-k * torch.finfo(x.dtype).eps ** 0.25 * 16 for k in range(5)]:
        ahead, behind = (ensemble.fields(gradient, x + sign * length * u)[0, 0] for sign in (1, -1))
        difference = (ahead - 2 * here + behind) / length**2
        scale = torch.maximum(torch.linalg.vector_norm(difference), torch.linalg.vector_norm(found))
        apart.append(float(torch.linalg.vector_norm(difference - found) / scale.clamp(min=torch.finfo(x.dtype).tiny)))
    if min(apart) > max(AGREEMENT, torch.finfo(x.dtype).eps ** 0.25):
        raise RuntimeError(
            f"torch's third derivative of this loss is {min(apart):.0%} off differences of gradients; its fused LayerNorm "
            "is a known case: write that in plain operations. Or the loss has kinks (ReLU): use a smooth activation"
        )
