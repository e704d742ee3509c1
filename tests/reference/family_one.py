"""Half of the family's update rules, written down slowly with all their steps: copies of everything, nothing in place.

Every function takes a step of `base`, a plain torch optimizer around `params`, for each of `losses`: functions without arguments
that evaluate a batch's mean loss at the current values of `params` (each sample's with `reduction="none"`).
"""

import math

import torch
from reference.transcriptions import dot, gradient, gradient_after, moved, norm, sam, take_step


def plus(a, b, factor=1.0):
    return [s + factor * t for s, t in zip(a, b)]


def times(a, factor):
    return [factor * t for t in a]


def usam(params, base, losses, rho):
    """arXiv 2206.06232: the gradient at w + rho g."""
    for loss in losses:
        g = gradient(loss, params)
        take_step(base, params, gradient_after(loss, params, times(g, rho)))


def sam_with_ascents(params, base, losses, rho, ascents):
    """arXiv 2010.01412 with several ascent steps, each of length rho / ascents along the gradient of where it starts."""
    for loss in losses:
        displacement = [torch.zeros_like(p) for p in params]
        for _ in range(ascents):
            g = gradient_after(loss, params, displacement)
            displacement = plus(displacement, g, rho / ascents / norm(g))
        take_step(base, params, gradient_after(loss, params, displacement))


def m_sam(params, base, losses, rho, parts):
    """arXiv 2010.01412, m-sharpness: the mean of SAM's gradients of the parts of a batch, each with an ascent of its own.

    `parts` makes of each loss those of its parts.
    """
    for loss in losses:
        directions = [sam(part, params, rho) for part in parts(loss)]
        take_step(base, params, [sum(ts) / len(directions) for ts in zip(*directions)])


def asam(params, base, losses, rho, eta, scaled):
    """arXiv 2102.11600: the gradient at w + rho T^2 g / |T g|, T = |w| + eta where `scaled`, else 1."""
    for loss in losses:
        g = gradient(loss, params)
        sizes = [p.detach().abs() + eta if on else torch.ones_like(p) for p, on in zip(params, scaled)]
        length = norm([t * s for t, s in zip(g, sizes)])
        displacement = [rho * s**2 * t / length for t, s in zip(g, sizes)]
        take_step(base, params, gradient_after(loss, params, displacement))


def gsam(params, base, losses, rho, alpha):
    """arXiv 2203.08065: SAM's gradient h less alpha times the component of g orthogonal to it."""
    for loss in losses:
        g = gradient(loss, params)
        h = gradient_after(loss, params, times(g, rho / norm(g)))
        u = times(h, 1 / norm(h))
        orthogonal = plus(g, u, -dot(g, u))
        take_step(base, params, plus(h, orthogonal, -alpha))


def wsam(params, base, losses, rho, gamma):
    """arXiv 2305.15817, coupled: the gradient of the loss and gamma / (1 - gamma) times that of the sharpness."""
    for loss in losses:
        g = gradient(loss, params)
        h = gradient_after(loss, params, times(g, rho / norm(g)))
        sharpness = plus(h, g, -1.0)
        take_step(base, params, plus(g, sharpness, gamma / (1 - gamma)))


def friendly_sam(params, base, losses, rho, sigma, decay):
    """arXiv 2403.12350, in the order of the official code: the mean of the steps before is taken out, then updated."""
    mean = None
    for loss in losses:
        g = gradient(loss, params)
        own = g if mean is None else plus(g, mean, -sigma)
        mean = g if mean is None else plus(times(mean, decay), g, 1 - decay)
        take_step(base, params, gradient_after(loss, params, times(own, rho / norm(own))))


def looksam(params, base, losses, rho, every, alpha):
    """arXiv 2203.02714, algorithm 1, with norms over all parameters."""
    orthogonal = None
    for step, loss in enumerate(losses):
        g = gradient(loss, params)
        if step % every == 0:
            h = gradient_after(loss, params, times(g, rho / norm(g)))
            cosine = dot(g, h) / (norm(g) * norm(h))
            orthogonal = plus(h, g, -norm(h) * cosine / norm(g))
            take_step(base, params, h)
        else:
            take_step(base, params, plus(g, orthogonal, alpha * norm(g) / norm(orthogonal)))


def momentum_sam(params, base, losses, rho, momentum, weight_decay):
    """arXiv 2401.12033: the gradient at w - rho v / |v| with SGD's momentum v, which is kept here a second time."""
    v = [torch.zeros_like(p) for p in params]
    for loss in losses:
        displacement = times(v, -rho / norm(v)) if norm(v) > 0 else v
        g = gradient_after(loss, params, displacement)
        v = [momentum * s + t + weight_decay * p.detach().clone() for s, t, p in zip(v, g, params)]
        take_step(base, params, g)


def momentum_sam_with_adam(params, base, losses, rho, beta):
    """The same with Adam's running mean of gradients."""
    mean = [torch.zeros_like(p) for p in params]
    for loss in losses:
        displacement = times(mean, -rho / norm(mean)) if norm(mean) > 0 else mean
        g = gradient_after(loss, params, displacement)
        mean = plus(times(mean, beta), g, 1 - beta)
        take_step(base, params, g)


def ae_sam(params, base, losses, rho, steps, start, end, decay):
    """arXiv 2304.14647, algorithm 1, but for the first mean, which is the first |g|^2. Returns the evaluations of each step."""
    mean, variance, evaluations = None, 0.0, []
    for step, loss in enumerate(losses):
        g = gradient(loss, params)
        square = dot(g, g).item()
        mean = square if mean is None else decay * mean + (1 - decay) * square
        variance = decay * variance + (1 - decay) * (square - mean) ** 2
        share = min(step / steps, 1.0)
        threshold = mean + (share * end + (1 - share) * start) * math.sqrt(variance)
        large = square >= threshold
        evaluations.append(2 if large else 1)
        take_step(base, params, gradient_after(loss, params, times(g, rho / norm(g))) if large else g)
    return evaluations


def esam(params, base, losses, rho, beta, gamma, drawn):
    """arXiv 2110.03141: some tensors displaced by rho / beta g / |g|; the loss of those samples that rise most.

    `drawn(step, count)` says which of `count` tensors.
    """
    for step, loss in enumerate(losses):
        g = gradient(loss, params)
        displacement = [
            rho / beta * t / norm(g) if on else torch.zeros_like(t) for t, on in zip(g, drawn(step, len(params)))
        ]
        before = loss(reduction="none").detach()
        with moved(params, displacement):
            after = loss(reduction="none").detach()
        count = next(k for k in range(1, len(before) + 1) if k / len(before) >= gamma)
        chosen = sorted(range(len(before)), key=lambda i, rise=after - before: -rise[i].item())[:count]
        of_chosen = lambda loss=loss, chosen=chosen: sum(loss(reduction="none")[i] for i in chosen) / len(chosen)
        take_step(base, params, gradient_after(of_chosen, params, displacement))


def x_sam(params, base, losses, rho, alpha, vector):
    """arXiv 2601.10251 with the sign of the eigenvector settled: SAM's gradient h less alpha |<h, v>| v, where <h, v> >= 0.

    `vector` is the unit eigenvector.
    """
    for loss in losses:
        h = sam(loss, params, rho)
        v = times(vector, torch.sign(dot(h, vector)))
        take_step(base, params, plus(h, v, -alpha * dot(h, v).abs()))
