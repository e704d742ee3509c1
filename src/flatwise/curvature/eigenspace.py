"""The top eigenvectors of a whole data set's Hessian as a function, for methods that ask for them while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature.hessian import hessian
from flatwise.curvature.lanczos import check_search, top_eigenpairs
from flatwise.objective import Objective
from flatwise.vectors import Vector


@dataclass(frozen=True)
class TopEigenspace:
    """`top_eigenpairs` of the Hessian of an objective, warm-started, in the order of an optimizer's parameters.

    Attributes:
        objective: the loss.
        tol: the relative residual.
    """

    objective: Objective
    tol: float

    def __call__(self, known: Sequence[Vector], weights: Vector) -> list[Vector]:
        """From the top eigenvectors as they were, or zeros, to as many orthonormal ones of the largest eigenvalues now.

        Raises:
            ValueError: the weights are not those of the objective's model.
        """
        _check_model(self.objective, weights)
        self.objective.check()
        self.objective.preflight()
        own = self.objective.limited([p for p in weights if isinstance(p, torch.nn.Parameter)])
        place = {id(p): i for i, p in enumerate(weights)}
        places = [place[id(p)] for p in own.parameters()]
        start = [[vector[i] for i in places] for vector in known if V.norm(vector) > 0]
        # The same from the same weights, also after a resume: the copy knows no lengths of earlier differences.
        pairs = top_eigenpairs(hessian(own, check=False), len(known), self.tol, start or None)
        return [_placed(vector, places, before) for vector, before in zip(pairs.vectors, known)]


def eigenspace(objective: Objective, tol: float = 1e-2) -> TopEigenspace:
    """The top eigenvectors of an objective's Hessian, as `Dominant`, `Bulk` and the methods with a `source` ask for them.

    The function that is returned takes the eigenvectors that are known, zero where they are not, and the parameters of an
    optimizer; it returns the eigenvectors of as many largest eigenvalues at the weights as they are, orthonormal. It keeps
    nothing: a resumed run finds the same. Parameters of the model that the optimizer does not train are held fixed. Measuring
    changes nothing; what it costs are some products each time, fewer when little has changed.

    Args:
        objective: the loss, of the model that is trained. In mode "current" a model in training has BatchNorm's batch statistics
            and always the same dropout masks; where there are such layers, "eval" is what most want.
        tol: the relative residual, > 0, as for `top_eigenpairs`.

    Raises:
        TypeError: it is no Objective.
        ValueError: tol is out of its range.
    """
    if not isinstance(objective, Objective):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"objective must be a flatwise.Objective, got a {type(objective).__name__}")
    check_search(tol, "largest", "vectors", None, 0)
    return TopEigenspace(objective, tol)


def _check_model(objective: Objective, weights: Vector) -> None:
    known = {id(p) for p in objective.parameters()}
    if any(p is not None and p.requires_grad and id(p) not in known for p in weights):
        raise ValueError(
            "the optimizer trains parameters that are not in the objective's model: make it of the model that is trained"
        )


def _placed(vector: Vector, places: Sequence[int], like: Vector) -> Vector:
    """The vector in the order of the weights, in the dtypes of `like`, zero where the objective has no parameter."""
    placed: list[Tensor | None] = V.zeros_like(like)
    for t, i in zip(vector, places, strict=True):
        before = like[i]
        placed[i] = t if t is None or before is None else t.to(before.dtype)
    return placed
