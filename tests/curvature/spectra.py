"""Symmetric operators whose eigenpairs are known."""

import torch

from flatwise import vectors as V
from flatwise.curvature import from_matrix


def rotated(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues, in float64."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    noise = torch.randn(len(values), len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(noise).Q
    matrix = basis @ torch.diag(values) @ basis.T
    return (matrix + matrix.T) / 2


def operator(eigenvalues, seed=0, dtype=torch.float64):
    return from_matrix(rotated(eigenvalues, seed).to(dtype))


def true_residuals(H, pairs):
    """`norm(H v - value * v)`, by one more product for each pair."""
    return [V.norm(V.add(H(v), v, -value)).item() for value, v in zip(pairs.values, pairs.vectors, strict=True)]


def gram(vectors):
    return torch.tensor([[V.dot(a, b).item() for a in vectors] for b in vectors])
