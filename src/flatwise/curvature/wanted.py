"""Which eigenvalues of a spectrum are wanted, and whether those that were found can be the ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Which: TypeAlias = Literal["largest", "smallest", "both", "magnitude"]
Target: TypeAlias = Literal["vectors", "values"]

End: TypeAlias = tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor], Tensor]]
"""An end of the spectrum: the places of the first so many from it, among values that descend; and what is largest of these."""


def _first(values: Tensor, k: int) -> Tensor:
    return torch.arange(min(k, len(values)))


def _last(values: Tensor, k: int) -> Tensor:
    return torch.arange(max(len(values) - k, 0), len(values))


def _longest(values: Tensor, k: int) -> Tensor:
    return values.abs().argsort(descending=True, stable=True)[:k]


_LARGEST, _SMALLEST, _MAGNITUDE = (_first, torch.positive), (_last, torch.neg), (_longest, torch.abs)
_ENDS: dict[str, tuple[End, ...]] = {
    "largest": (_LARGEST,),
    "smallest": (_SMALLEST,),
    "both": (_LARGEST, _SMALLEST),
    "magnitude": (_MAGNITUDE,),
}


CAUTION = 4.0
"""A factor on errors by gaps, since a nearer eigenvalue may not be in sight yet. On spectra like those of trained networks it
lowers the share of searches that stop too early from 5 % to 1.5 %, for half a product."""


@dataclass(frozen=True)
class Wanted:
    """The first `k` eigenvalues from one end of a spectrum, or from both.

    Attributes:
        k: how many from each end.
        which: "largest" and "smallest" are algebraic, "both" means `k` of each, "magnitude" the largest absolute values.
        target: what a tolerance is for: "vectors" takes residuals, "values" the errors of the values that they allow.
    """

    k: int
    which: Which = "largest"
    target: Target = "vectors"

    @property
    def count(self) -> int:
        """How many in all."""
        return self.k * len(_ENDS[self.which])

    def of(self, values: Tensor, k: int | None = None) -> Tensor:
        """The places of the wanted ones among values that descend, ascending; or of the first `k` from each end."""
        most = len(values) // len(_ENDS[self.which])
        return torch.cat([places(values, min(k or self.k, most)) for places, _ in _ENDS[self.which]]).unique()

    def outermost(self, values: Tensor) -> list[float]:
        """The absolute value of the outermost eigenvalue of each end, of values that descend: a tolerance is relative to it."""
        return [values[places(values, 1)].abs().item() for places, _ in _ENDS[self.which]]

    def found(self, values: Tensor, residuals: Tensor, tol: float, rounding: float) -> bool:
        """Whether those of each end are known to `tol` times its outermost one, or to rounding, and none can lie before them."""
        if len(values) < self.count:
            return False
        return all(
            self._end_is_found(
                places(values, self.k),
                score(values),
                residuals,
                residuals if self.target == "vectors" else errors(values, residuals, outermost),
                max(tol * outermost, rounding),
            )
            for (places, score), outermost in zip(_ENDS[self.which], self.outermost(values), strict=True)
        )

    @staticmethod
    def _end_is_found(wanted: Tensor, scores: Tensor, residuals: Tensor, off: Tensor, allowed: float) -> bool:
        """A Ritz value that is not wanted may still move by its residual."""
        others = torch.ones_like(scores, dtype=torch.bool)
        others[wanted] = False
        reach = (scores + residuals)[others]
        near = not len(reach) or bool(reach.max() <= scores[wanted].min() + allowed)
        return near and bool(off[wanted].max() <= allowed)


def errors(values: Tensor, residuals: Tensor, outermost: float) -> Tensor:
    """How far off Ritz values can be: by their residuals, or by residual^2 / gap where the gap to the others is surely wider.

    (Parlett, The Symmetric Eigenvalue Problem, section 11.7.) A neighbour is as near as its own residual allows. What no other
    value is seen of has no gap. No gap counts for more than `outermost`, the absolute value of the outermost one of the end.
    """
    apart = (values[:, None] - values).abs() - residuals
    nearest = apart.fill_diagonal_(torch.inf).min(dim=1).values
    # After few products the nearest value in sight may be one far larger, at the other end of the spectrum. It says nothing of
    # the neighbours here, and a value amid a bulk would pass for known.
    safe = nearest.clamp(max=outermost)
    by_gap = CAUTION * residuals**2 / safe
    return torch.where((safe > residuals) & nearest.isfinite(), by_gap.minimum(residuals), residuals)


def gaps(values: Tensor) -> Tensor:
    """The distance of each value to the nearest of the others; infinite where there is no other."""
    return (values[:, None] - values).abs().fill_diagonal_(torch.inf).min(dim=1).values
