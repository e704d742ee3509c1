"""Brownian motions that are the same at every step size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Brownian:
    """Independent Brownian motions, known at multiples of a finest step; coarser steps add up its increments.

    Nothing is stored: increments are drawn anew by their number, so that simulations at several step sizes see the same
    noise.

    Args:
        seed: of all of them.
        shape: of the motions, such as (paths, dimensions).
        resolution: the finest step, in time; > 0.
        dtype: of the increments.
    """

    seed: int
    shape: tuple[int, ...]
    resolution: float
    dtype: torch.dtype = torch.float64

    def increment(self, first: int, count: int = 1) -> Tensor:
        """By how much the motions change over `count` finest steps from the one of number `first` on."""
        return torch.stack([self._normal(i) for i in range(first, first + count)]).sum(0) * self.resolution**0.5

    def _normal(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        return torch.randn(self.shape, generator=generator, dtype=self.dtype)
