"""The papers' update rules written down plainly and slowly: a copy of every vector, nothing in place, no cleverness.

`loss` is a function without arguments that evaluates at the current values of `params`. Every function returns the vector
that the base optimizer receives as the gradient, and leaves the parameters as they were.
"""

import math
from contextlib import contextmanager

import torch


def gradient(loss, params):
    return list(torch.autograd.grad(loss(), params))


def dot(a, b):
    return sum((s * t).sum() for s, t in zip(a, b))


def norm(a):
    return torch.sqrt(dot(a, a))


@contextmanager
def moved(params, displacement):
    originals = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, d in zip(params, displacement):
            p.copy_(p + d)
    yield
    with torch.no_grad():
        for p, original in zip(params, originals):
            p.copy_(original)


def gradient_after(loss, params, displacement):
    with moved(params, displacement):
        return gradient(loss, params)


def sgd(loss, params):
    return gradient(loss, params)


def sam(loss, params, rho):
    """arXiv 2010.01412, algorithm 1: the gradient at w + rho g / |g|."""
    g = gradient(loss, params)
    return gradient_after(loss, params, [rho * t / norm(g) for t in g])


def reverse_sam(loss, params, rho):
    """arXiv 2501.12666, appendix: the gradient at w - rho g / |g|."""
    return sam(loss, params, -rho)


def usam(loss, params, rho):
    """arXiv 2206.06232: the gradient at w + rho g."""
    return gradient_after(loss, params, [rho * t for t in gradient(loss, params)])


def asam(loss, params, rho, eta):
    """arXiv 2102.11600, equation 3 with T = diag(|w| + eta): the gradient at w + rho T^2 g / |T g|."""
    g = gradient(loss, params)
    sizes = [p.detach().abs() + eta for p in params]
    length = norm([s * t for s, t in zip(sizes, g)])
    return gradient_after(loss, params, [rho * s**2 * t / length for s, t in zip(sizes, g)])


def gradient_norm(loss, params, rho):
    """The gradient of f + rho |grad f|, that is g + rho H g / |g|, with an exact Hessian-vector product."""
    g = torch.autograd.grad(loss(), params, create_graph=True)
    penalty = torch.autograd.grad(norm(g), params)
    return [(s + rho * t).detach() for s, t in zip(g, penalty)]


def eigen_sam_displacement(g, v, rho, alpha):
    """arXiv 2501.12666: rho (u + alpha sign<g, v> (v - <v, u> u)) with u = g / |g|; the sum is not normalised again."""
    u = [t / norm(g) for t in g]
    c = dot(v, u)
    orthogonal = [s - c * t for s, t in zip(v, u)]
    return [rho * (s + alpha * torch.sign(c) * t) for s, t in zip(u, orthogonal)]


def eigen_sam(loss, params, rho, alpha, v):
    """The gradient at the displaced weights, for a given unit vector `v`."""
    g = gradient(loss, params)
    return gradient_after(loss, params, eigen_sam_displacement(g, v, rho, alpha))


def eigen_sam_length(rho, alpha, c):
    """The displacement's norm, for the cosine `c` between the gradient and v."""
    return rho * math.sqrt(1 + alpha**2 * (1 - c**2))


def eigen_sam_alignment(alpha, c):
    """|cos| between the displacement and v."""
    return (abs(c) + alpha * (1 - c**2)) / math.sqrt(1 + alpha**2 * (1 - c**2))


def hessian_matrix(loss, params):
    """The full Hessian, one row at a time by double backward; unused parameters count as zeros."""
    g = torch.autograd.grad(loss(), params, create_graph=True, allow_unused=True, materialize_grads=True)
    flat = torch.cat([t.reshape(-1) for t in g])
    rows = [_hessian_row(entry, params) for entry in flat]
    return torch.stack(rows)


def _hessian_row(entry, params):
    row = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([t.reshape(-1) for t in row])


def top_eigenvector(loss, params):
    """The largest algebraic eigenvalue of the Hessian and its eigenvector, flat."""
    h = hessian_matrix(loss, params)
    values, vectors = torch.linalg.eigh((h + h.T) / 2)
    return values[-1].item(), vectors[:, -1]


def take_step(base, params, direction):
    """Hand `direction` to a plain optimizer."""
    for p, d in zip(params, direction):
        p.grad = d.detach().clone()
    base.step()
