"""The other half of the family's update rules, written down slowly with all their steps: copies of everything, nothing in place.

Every function takes a step of `base`, a plain torch optimizer around `params`, for each of `losses`: functions without arguments
that evaluate a batch's mean loss at the current values of `params`. Random displacements come from `draw(step, sample)`, a
standard normal vector.
"""

import torch
from reference.family_one import plus, times
from reference.transcriptions import (
    dot,
    eigen_sam,
    gradient,
    gradient_after,
    gradient_norm,
    hessian_matrix,
    moved,
    norm,
    reverse_sam,
    sam,
    take_step,
    usam,
)


def value_and_gradient_after(loss, params, displacement):
    with moved(params, displacement):
        value = loss()
        return value.detach(), list(torch.autograd.grad(value, params))


def sgd(params, base, losses):
    for loss in losses:
        take_step(base, params, gradient(loss, params))


def with_reverse_sam(params, base, losses, rho):
    for loss in losses:
        take_step(base, params, reverse_sam(loss, params, rho))


def with_gradient_norm(params, base, losses, rho):
    for loss in losses:
        take_step(base, params, gradient_norm(loss, params, rho))


# --- random points ----------------------------------------------------------------------------------------------------


def tsam(params, base, losses, rho, radius, tilt, samples, draw):
    """arXiv 2410.22656, algorithm 2 with delta 0: from random points uphill, weighted by the exponential of the loss."""
    for step, loss in enumerate(losses):
        values, gradients = [], []
        for sample in range(samples):
            noise = draw(step, sample)
            start = times(noise, radius * rho / norm(noise))
            g = gradient_after(loss, params, start)
            value, found = value_and_gradient_after(loss, params, plus(start, g, rho / norm(g)))
            values.append(value)
            gradients.append(found)
        weights = torch.softmax(tilt * torch.stack(values), dim=0)
        take_step(base, params, [sum(w * t for w, t in zip(weights, ts)) for ts in zip(*gradients)])


def nso(params, base, losses, rho, samples, clean, draw):
    """arXiv 2306.08553, algorithm 1: the mean over w + u and w - u; `clean` is lambda, the weight of the gradient at w."""
    for step, loss in enumerate(losses):
        gradients = []
        for sample in range(samples):
            noise = draw(step, sample)
            gradients += [gradient_after(loss, params, times(noise, sign * rho)) for sign in (1, -1)]
        mean = [sum(ts) / len(gradients) for ts in zip(*gradients)]
        take_step(base, params, plus(times(gradient(loss, params), clean), mean, 1 - clean))


def universal(params, base, losses, rho, strength, samples, psi, phi, point, draw):
    """arXiv 2406.03682: g + lambda phi'(mean psi(d)) mean(psi'(d) (g_i - g)), d = (f(w + rho t) - f(w)) / rho^2.

    `psi` and `phi` are the functions themselves; `point` makes a sample of the measure of a standard normal one.
    """
    for step, loss in enumerate(losses):
        value, g = loss().detach(), gradient(loss, params)
        rises, differences = [], []
        for sample in range(samples):
            there, found = value_and_gradient_after(loss, params, times(point(draw(step, sample)), rho))
            rises.append((there - value) / rho**2)
            differences.append(plus(found, g, -1))
        slopes = [slope_of(psi, rise) for rise in rises]
        outer = slope_of(phi, sum(psi(rise) for rise in rises) / samples)
        total = [sum(s * t for s, t in zip(slopes, ts)) / samples for ts in zip(*differences)]
        take_step(base, params, plus(g, total, strength * outer))


def slope_of(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def frob_sam(params, base, losses, rho, strength, samples, draw):
    """arXiv 2406.03682, the variance form: g + lambda / rho^2 (sum L_i g_i / (n - 1) - sum L_i sum g_i / (n (n - 1)))."""
    n = samples
    for step, loss in enumerate(losses):
        there = [value_and_gradient_after(loss, params, times(draw(step, i), rho)) for i in range(n)]
        weighted = [sum(value * t for (value, _), t in zip(there, ts)) for ts in zip(*(g for _, g in there))]
        total = [sum(ts) for ts in zip(*(g for _, g in there))]
        sharpness = plus(times(weighted, 1 / (n - 1)), total, -sum(value for value, _ in there) / (n * (n - 1)))
        take_step(base, params, plus(gradient(loss, params), sharpness, strength / rho**2))


# --- around other rules -----------------------------------------------------------------------------------------------


def ssam(params, base, losses, rho, within="sam"):
    """arXiv 2401.07250: the gradient of SAM (or un-normalised SAM) times |g| / |g_SAM|."""
    for loss in losses:
        found = {"sam": sam, "usam": usam}[within](loss, params, rho)
        take_step(base, params, times(found, norm(gradient(loss, params)) / norm(found)))


def sam_at_some_steps(params, base, losses, rho, at):
    """SAM where `at(step)`, else the gradient: arXiv 2410.10373 with `step >= start`."""
    for step, loss in enumerate(losses):
        take_step(base, params, sam(loss, params, rho) if at(step) else gradient(loss, params))


def projected(params, base, losses, everything, k, every, inside):
    """arXiv 2405.16002: of each update the part in the span of the top eigenvectors of the mean of `everything`, or the rest."""
    for step, loss in enumerate(losses):
        if step % every == 0:
            h = hessian_matrix(lambda: sum(other() for other in everything) / len(everything), params)
            top = torch.linalg.eigh((h + h.T) / 2).eigenvectors[:, -k:]
        before = flat(params)
        take_step(base, params, gradient(loss, params))
        update = flat(params) - before
        part = top @ (top.T @ update)
        put(params, before + (part if inside else update - part))


def prgd(params, base, losses, every, growth):
    """arXiv 2311.14387: normalised steps projected on the ball of the weights' norm; every k-th time the norm grows instead."""
    for step, loss in enumerate(losses):
        before, value = flat(params), loss().detach()
        take_step(base, params, times(gradient(loss, params), 1 / value))
        after = flat(params)
        if (step + 1) % every == 0:
            put(params, before * growth)
        elif after.norm() > before.norm():
            put(params, after * before.norm() / after.norm())


def flat(params):
    return torch.cat([p.detach().reshape(-1) for p in params])


def parts_of(vector, params):
    return [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in params]), params)]


def put(params, vector):
    with torch.no_grad():
        for p, part in zip(params, parts_of(vector, params)):
            p.copy_(part)


# --- with an eigenvector ----------------------------------------------------------------------------------------------


def exact(known, loss, params, step):
    """The eigenvector of the largest eigenvalue, by brute force."""
    h = hessian_matrix(loss, params)
    return parts_of(torch.linalg.eigh((h + h.T) / 2).eigenvectors[:, -1], params)


def with_eigen_sam(params, base, losses, rho, alpha, every, find=exact):
    """arXiv 2501.12666, algorithm 2, with an eigenvector that `find(known, loss, params, step)` gives at steps 0, every ..."""
    v = None
    for step, loss in enumerate(losses):
        if step % every == 0:
            v = find(v, loss, params, step)
        take_step(base, params, eigen_sam(loss, params, rho, alpha, v))


def power_iteration(iterations, draw):
    """The iteration of arXiv 2501.12666, algorithm 1, from another start than the official code's: see `first_vector`."""

    def find(known, loss, params, step):
        v = first_vector(known, loss, params, draw)
        h = hessian_matrix(loss, params)
        for _ in range(iterations):
            v = h @ v / (h @ v).norm()
        return parts_of(v, params)

    return find


def first_vector(known, loss, params, draw):
    """flatwise's own: the vector known and a tenth of the gradient, or the gradient and a tenth of noise.

    The official code of Eigen-SAM starts at the vector known, or at noise, alone.
    """
    g = flat(gradient(loss, params))
    much, little = (g, flat(draw())) if known is None else (flat(known), g)
    v = much / much.norm() + 0.1 * little / little.norm()
    return v / v.norm()


def with_stochastic_lanczos(params, base, losses, rho, alpha, every, iterations, draw):
    """Eigen-SAM, its vector the top Ritz vector of a Krylov space that grows by the product of one step's Hessian at a time."""
    v, basis = None, []
    for step, loss in enumerate(losses):
        if step % every == 0:
            basis, matrix = [first_vector(v, loss, params, draw)], torch.zeros(iterations, iterations).double()
        if len(basis) <= iterations:
            product = hessian_matrix(loss, params) @ basis[-1]
            n = len(basis)
            matrix[:n, n - 1] = torch.stack([b @ product for b in basis])
            for b in basis + basis:
                product = product - (b @ product) * b
            basis.append(product / product.norm())
        if len(basis) == iterations + 1:
            coordinates = torch.linalg.eigh(matrix, UPLO="U").eigenvectors[:, -1]
            v = parts_of(sum(c * b for c, b in zip(coordinates, basis)), params)
            basis = [*basis, None]
        tilted = times(params, 0.0) if v is None else v
        take_step(base, params, eigen_sam(loss, params, rho, alpha, [t.detach() for t in tilted]))


def eigenvalue_penalty(params, base, losses, rho, every):
    """The gradient of f + rho^2 / 2 v'Hv with v held fixed, by differentiating three times; v exact at steps 0, every ..."""
    v = None
    for step, loss in enumerate(losses):
        if step % every == 0:
            v = exact(v, loss, params, step)
        g = torch.autograd.grad(loss(), params, create_graph=True)
        product = torch.autograd.grad(dot(g, v), params, create_graph=True)
        slope = torch.autograd.grad(dot(product, v), params)
        take_step(base, params, plus([t.detach() for t in g], slope, rho**2 / 2))


# --- the functions of the universal class -----------------------------------------------------------------------------

TRACE = {"psi": lambda x: x, "phi": lambda x: x}
DET = {"psi": lambda x: torch.exp(-x / 2), "phi": lambda x: 1 / x**2}


def on_the_sphere(noise):
    return times(noise, 1 / norm(noise))


def in_a_cube(half_width):
    """A normal number's distribution function is uniform."""
    uniform = lambda t: torch.special.ndtr(t) * 2 - 1
    return lambda noise: [half_width * uniform(t) for t in noise]
