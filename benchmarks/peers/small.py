"""The inputs that every check shares: a small network, batches, a step of SAM written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatwise as fw

RHO = 0.1


def network(norm: bool = False, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same classifier at every call, with BatchNorm on request."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 10), *([nn.BatchNorm1d(10)] if norm else []), nn.Tanh(), nn.Linear(10, 3)]
        return nn.Sequential(*layers).to(dtype)


def batches(count: int, size: int = 16, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator).to(dtype), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def momentum_sgd(parameters: Any, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def ours(model: nn.Module, **options: Any) -> fw.SharpnessAware:
    return fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(RHO), model=model, **options)


def closure_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> Callable[[], Tensor]:
    """As people write it: zero, forward, backward, return the loss."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    return closure


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def distance(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models' weights."""
    return (flat(model).double() - flat(other).double()).abs().max().item()


def sam_by_hand(model: nn.Module, base: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """One step of SAM (arXiv 2010.01412, algorithm 1), plainly."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss(), parameters)
    length = torch.cat([g.reshape(-1) for g in gradient]).norm()
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, gradient):
            p.add_(RHO * g / length)
    there = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for p, old, g in zip(parameters, before, there):
            p.copy_(old)
            p.grad = g
    base.step()


def trained_by_hand(data: list[tuple[Tensor, Tensor]], **options: Any) -> nn.Sequential:
    model = network(**options)
    base = momentum_sgd(model.parameters())
    for batch in data:
        sam_by_hand(model, base, lambda batch=batch: loss_of(model, batch))
    return model


def counted(model: nn.Module) -> list[int]:
    """A list that grows by one with every forward."""
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    return runs
