"""The exact eigenvalues, with nothing of flatwise: differentiated twice by hand, SciPy's Lanczos method, and float64.

The search runs in float32 to a tight tolerance. What it finds spans a space in which the float64 Hessian is then diagonalised: as
many float64 products as pairs. An error of a vector enters its value squared, so the values are those of a search in float64,
which takes ten times as long; the residuals in float64 say so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 1e-5
"""Of the search, relative to each eigenvalue; float32 carries no more."""

TRUSTED = 1e-3
"""The largest residual relative to the largest eigenvalue: the values are then good to about its square."""


@dataclass(frozen=True)
class Exact:
    """Eigenpairs of the Hessian of the mean cross-entropy in evaluation mode.

    Attributes:
        values: the largest, descending, float64 [k].
        vectors: their unit eigenvectors as columns, float64 [n, k].
        residuals: norm(H v - value * v) of each, in float64 [k].
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


Product = Callable[[Tensor], Tensor]
"""From a vector to its image, both float64 [n]."""


def exact(model: nn.Module, inputs: Tensor, targets: Tensor, k: int = 1, which: str = "LA") -> Exact:
    """The `k` largest eigenvalues ("LA"), or the smallest ("SA").

    Raises:
        RuntimeError: the residuals in float64 are not small.
    """
    size = sum(p.numel() for p in model.parameters())
    space = searched(hessian(model, inputs, targets, torch.float32), size, k, which)
    found = diagonalised(hessian(model, inputs, targets, torch.float64), space)
    if found.residuals.max() > TRUSTED * found.values.abs().max():
        raise RuntimeError(f"the reference is not exact: residuals {found.residuals.tolist()}")
    return found


def searched(product: Product, size: int, k: int, which: str) -> Tensor:
    """Eigenvectors by SciPy's Lanczos method, as columns [size, k]."""
    operator = LinearOperator(
        (size, size), lambda v: product(torch.from_numpy(v.reshape(-1))).numpy(), dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(size)
    _, vectors = eigsh(operator, k=k, which=which, tol=TOLERANCE, v0=start, ncv=min(size, 2 * k + 20))
    return torch.from_numpy(vectors)


def diagonalised(product: Product, space: Tensor) -> Exact:
    """The Ritz pairs of an operator in a space, given by columns [n, k], with their true residuals."""
    basis = torch.linalg.qr(space).Q
    images = torch.stack([product(q) for q in basis.T], dim=1)
    square = basis.T @ images
    values, rotation = torch.linalg.eigh((square + square.T) / 2)
    values, rotation = values.flip(0), rotation.flip(1)
    vectors = basis @ rotation
    return Exact(values, vectors, torch.linalg.vector_norm(images @ rotation - vectors * values, dim=0))


def hessian(model: nn.Module, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> Product:
    """Products in this precision: the graph of the gradient is kept, and differentiated along each vector."""
    same = copy.deepcopy(model).to(dtype).eval()
    parameters = list(same.parameters())
    loss = F.cross_entropy(same(inputs.to(dtype)), targets)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        parts = vector.to(dtype).split([p.numel() for p in parameters])
        along = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        image = torch.autograd.grad(gradient, parameters, along, retain_graph=True)
        return torch.cat([h.reshape(-1) for h in image]).double()

    return product
