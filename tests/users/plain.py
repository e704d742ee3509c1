"""What a plain training script has: a small network, some batches, and a step of SAM written out by hand as the reference."""

import torch
import torch.nn.functional as F
from torch import nn


def network(*, norm=False, dropout=0.0, dtype=torch.float32):
    """The same small classifier at every call, with BatchNorm or dropout on request."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        extra = [nn.BatchNorm1d(10)] if norm else []
        layers = [nn.Linear(6, 10), *extra, nn.Tanh(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(10, 3)]
        return nn.Sequential(*layers).to(dtype)


def batches(count, size=16, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: (
        torch.randn(size, 6, generator=generator).to(dtype),
        torch.randint(3, (size,), generator=generator),
    )
    return [draw() for _ in range(count)]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def momentum_sgd(params, lr=0.1):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def flat(model):
    """All weights of a model, copied, as one vector."""
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def sam_by_hand(model, base, losses, rho):
    """One step of SAM (arXiv 2010.01412, algorithm 1), where `losses()` is the loss of the whole batch. Returns the loss.

    The gradient, the weights a little along it, the gradient there, the weights back, the base optimizer's step.
    """
    params = list(model.parameters())
    loss = losses()
    gradient = torch.autograd.grad(loss, params)
    length = torch.cat([g.reshape(-1) for g in gradient]).norm()
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, gradient):
            p.add_(rho * g / length)
    there = torch.autograd.grad(losses(), params)
    with torch.no_grad():
        for p, old, g in zip(params, before, there):
            p.copy_(old)
            p.grad = g
    base.step()
    return loss.detach()
