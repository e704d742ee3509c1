"""Jacobians from layer to layer, and whether the singular vectors of consecutive ones are aligned (arXiv 2406.00127).

Curvature grows while a network trains because what one layer stretches most comes to lie along what the next one stretches most:
the product of the Jacobians gets larger than its factors. A Jacobian is that of one sample; no matrix is built, all samples of a
batch are worked on at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from flatwise.curvature.chains import Chain, Segment
from flatwise.curvature.checks import check_count
from flatwise.curvature.estimate import Estimate, mean_of
from flatwise.curvature.krylov import ROUNDING
from flatwise.curvature.record import Record, record
from flatwise.curvature.singular import Singular, top_singular
from flatwise.objective import Objective
from flatwise.objective.derivatives import twice_differentiable


@dataclass(frozen=True)
class LayerJacobians:
    """The largest singular values and vectors of the Jacobians from layer to layer, for each sample.

    The lists have an entry for each Jacobian: of the output of `layers[i + 1]` with respect to that of `layers[i]`.

    Attributes:
        layers: the names of the layers; the first may be "input", that of the layer after it.
        values: the largest singular values [samples, k], descending.
        left: unit vectors [samples, k, ...] in the shape of the later layer's output: what comes out.
        right: unit vectors [samples, k, ...] in the shape of the earlier layer's output: what goes in. Zero, as is `left`, where
            the value is 0.
        residuals: `norm(J' u - value * v)` [samples, k], J v being value * u.
        products: how many products with Jacobians and their transposes it took, of whole batches.
        record: of the measurement.
    """

    layers: list[str]
    values: list[Tensor]
    left: list[Tensor]
    right: list[Tensor]
    residuals: list[Tensor]
    products: int
    record: Record

    def cosines(self, layer: str) -> Tensor:
        """Absolute cosines [samples, k, k] at a layer's output: of what the Jacobian before it brings out most (rows) with what
        the Jacobian after it takes in most (columns).

        Raises:
            ValueError: the layer is not between two Jacobians.
        """
        if layer not in self.layers[1:-1]:
            raise ValueError(
                f"{layer!r} is not between two Jacobians; these are: {', '.join(self.layers[1:-1]) or 'none'}"
            )
        i = self.layers.index(layer)
        before, after = self.left[i - 1].flatten(2), self.right[i].flatten(2)
        return (before @ after.transpose(1, 2)).abs()

    def alignment(self, layer: str) -> Estimate:
        """The mean over samples of the first cosine at a layer, and its standard error: 1 is aligned, `chance` is not.

        Where the largest singular value is not simple, its vector is any of several, and all of `cosines` tells more.
        """
        return replace(mean_of(self.cosines(layer)[:, 0, 0].double().cpu(), self.products), record=self.record)

    def chance(self, layer: str) -> float:
        """The mean absolute cosine of a random direction with any other at a layer's output."""
        size = self.left[self.layers.index(layer) - 1][0, 0].numel()
        return math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)


def layer_jacobians(
    objective: Objective,
    layers: Sequence[str],
    k: int = 1,
    *,
    from_input: bool = False,
    tol: float = 1e-2,
    max_basis: int = 50,
    seed: int = 0,
    step: int | None = None,
) -> LayerJacobians:
    """The largest singular values and vectors of the Jacobians between consecutive layers, for each sample.

    By a block Lanczos method from k random vectors for each sample, until residuals are at most `tol` times the largest value.

    Args:
        objective: says the model, the data, the mode. The loss is called, the values do not depend on it. A few hundred samples
            say enough: `objective.subset(200)`; `micro_batch` cuts batches where vectors are large. In a process group, each
            process measures its own samples.
        layers: names of modules as in `model.named_modules()`, in the order in which they run, each once. Each returns a tensor
            of shape [samples, ...], or a tuple that starts with one. For a Sequential of Linear and ReLU, `["0", "2", "4"]` are
            the outputs of the linear layers: each Jacobian is that of a ReLU and a linear layer.
        k: how many, 1 up to the smaller size of a Jacobian.
        from_input: whether to begin with the Jacobian of the first layer with respect to its own input.
        tol: the relative residual, > 0.
        max_basis: how many vectors for each sample may be held, at least k, three times, all in the size of what layers return.
            What has not converged then is told by a warning.
        seed: of the random vectors.
        step: the training step of the weights, for the record.

    Raises:
        TypeError: a number that is no integer, or a layer that returns no tensor.
        ValueError: a layer that does not exist, runs more than once or not in this order, does not depend on the one before, or
            mixes samples, as BatchNorm does in training mode; or an argument out of its range.
        RuntimeError: parameters sharded by FSDP2.
    """
    check_count("k", k, 1)
    check_count("max_basis", max_basis, k)
    if not 0 < tol < math.inf:
        raise ValueError(f"tol must be a finite number > 0, got {tol}")
    if objective.in_step:
        raise RuntimeError(
            "layer Jacobians of parameters sharded by FSDP2 are not possible; gather the model on one process"
        )
    chain = Chain(objective.model, layers, from_input)
    how = record(objective, "double", "products of layers' Jacobians and their transposes", 0.0, step)
    with objective.evaluation(), twice_differentiable(objective.model):
        batches = (chain.segments(partial(objective.loss, part.batch)) for part in objective.own_parts())
        found = [[_top(segment, k, tol, max_basis, seed) for segment in segments] for segments in batches]
    if not found:
        raise ValueError("the data holds no samples on this process")
    values, left, right, residuals = _joined(found)
    products = sum(top.products for tops in found for top in tops)
    result = LayerJacobians(chain.names, values, left, right, residuals, products, how)
    _warn_if_coarse(result, tol)
    return result


def _top(segment: Segment, k: int, tol: float, max_basis: int, seed: int) -> Singular:
    """Of the Jacobians of all samples; vectors in the shapes of what goes in and comes out."""
    inputs, outputs = segment.sizes
    if k > min(inputs, outputs):
        raise ValueError(f"k must be at most {min(inputs, outputs)}, the smaller size of {segment.name}, got {k}")
    place, wide = segment.place, torch.promote_types(segment.place.dtype, torch.float32)
    start = torch.randn(len(place), inputs, k, generator=torch.Generator().manual_seed(seed)).to(place.device, wide)
    found = top_singular(segment.forward, segment.backward, start, tol, max_basis)
    left = found.left.transpose(1, 2).unflatten(2, segment.value.shape[1:])
    right = found.right.transpose(1, 2).unflatten(2, place.shape[1:])
    return found._replace(left=left, right=right)


def _joined(found: Sequence[Sequence[Singular]]) -> list[list[Tensor]]:
    """Values, left and right vectors and residuals, each a list over Jacobians, of all batches."""
    jacobians = list(zip(*found, strict=True))
    return [[torch.cat([top[field] for top in batches]) for batches in jacobians] for field in range(4)]


def _warn_if_coarse(found: LayerJacobians, tol: float) -> None:
    worst = max(float((r / v[:, :1]).nan_to_num(0.0).max()) for r, v in zip(found.residuals, found.values, strict=True))
    if worst > max(tol, ROUNDING * torch.finfo(found.values[0].dtype).eps):
        warnings.warn(
            f"a relative residual of {worst:.2g} is left, wanted {tol:g}; raise max_basis or tol", stacklevel=3
        )
