"""A seam: one of the ways in which a training drives the optimizer, and what it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from methods.cases import Case
from optim.problems import BASES, batches, build, mlp, train
from reference import driver
from torch import nn

STEPS = 50


@dataclass(frozen=True)
class Seam:
    """`weights(case)` trains along the seam, `reference(case)` without it; both return all weights in one vector.

    `kind` and `note` are for the tables, `tolerance` is for the largest difference of a weight.
    """

    name: str
    weights: Callable[[Case], torch.Tensor]
    kind: str
    tolerance: float = 1e-8
    reference: Callable[[Case], torch.Tensor] | None = None
    note: str = ""
    has_momentum: bool = True  # the base optimizer keeps one
    takes_adaptive: bool = True  # methods whose number of evaluations depends on data

    def fits(self, case):
        """Whether the method can be had along this seam; else it is refused."""
        return (self.has_momentum or not case.needs_momentum) and (self.takes_adaptive or not case.method.adaptive)

    def difference(self, case):
        expected = (self.reference or slowly)(case)
        return float((self.weights(case).double() - expected.double()).abs().max())


def data(size=16, dtype=torch.float64):
    return batches(STEPS, size=size, dtype=dtype)


@cache
def slowly(case, net=mlp, base="sgd", dtype=torch.float64, groups=nn.Module.parameters):
    """The reference run: the method driven without `flatwise.optim`."""
    model = net(dtype)
    optimizer = (BASES[base] if isinstance(base, str) else base)(groups(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = lambda output, batch: F.cross_entropy(output, batch[1])
        return driver.trained(case.method, model, optimizer, data(dtype=dtype), loss)


def along(step, net=mlp, base="sgd", dtype=torch.float64, **options):
    """The weights of a run with `step(setup, batch)` at each batch."""

    def weights(case):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            setup = build(case.method, base, net, dtype, **options)
            train(setup, data(dtype=dtype), step)
        return torch.cat([p.detach().reshape(-1) for p in setup.model.parameters()])

    return weights
