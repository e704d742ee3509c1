"""Layer normalisation from elementary operations, whose derivatives of every order are right."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Normalises one dimension to mean 0 and variance 1, then scales and shifts it by learnt numbers.

    The values are those of torch.nn.LayerNorm, whose fused kernel has wrong third derivatives; and the dimension may be any:
    1 normalises the channels at each pixel of images [B, C, H, W], as Flax does with its last one.

    Args:
        size: of the dimension.
        dim: which.
        eps: is added to the variance.
    """

    def __init__(self, size: int, dim: int = -1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of the same shape."""
        away = x - x.mean(self.dim, keepdim=True)
        normal = away * (away.square().mean(self.dim, keepdim=True) + self.eps).rsqrt()
        return torch.addcmul(self._along(self.bias, x), normal, self._along(self.weight, x))

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        """The values [size] in a shape that multiplies the right dimension of x."""
        shape = [1] * x.ndim
        shape[self.dim] = -1
        return values.view(shape)
