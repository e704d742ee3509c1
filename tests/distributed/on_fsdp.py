"""Scenarios for two processes under FSDP2."""

import torch
from distributed.layouts import EIGEN, FEW, METHODS, SAM, STEPS, fsdp, network, shares, trained
from optim.problems import seeded
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import flatwise as fw
from flatwise.methods import Late

HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def kept_after_backward():
    model = fsdp()
    model.set_reshard_after_backward(False)
    return model


def steps_of(name):
    """Processes that gather and scatter are slow: fifty steps for two methods, fewer for the rest."""
    return STEPS if METHODS[name] in (SAM, EIGEN) else FEW


def in_halves(rank):
    model = fsdp(net=lambda: network().float(), mp_policy=HALF)
    return trained(model, SAM, [(x.float(), y) for x, y in shares(rank, count=FEW)])


def without_passes_at_lr_zero(rank):
    """One row of weights: the second process has none. The norm of the gradient that the step found."""
    model = fully_shard(seeded(lambda: nn.Linear(4, 1, bias=False)).double())
    opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.0), Late(SAM, start=9), model=model)
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    opt.step()
    return torch.tensor(opt.diagnostics["gradient_norm"])


VARIANTS = {
    "kept after forward": lambda: fsdp(reshard_after_forward=False),
    "kept after backward": kept_after_backward,
    "in one piece": lambda: fully_shard(network()),
}

SCENARIOS = {
    "without passes at lr 0": without_passes_at_lr_zero,
    **{
        f"fsdp {name}": lambda rank, name=name, m=m: trained(fsdp(), m, shares(rank, count=steps_of(name)))
        for name, m in METHODS.items()
    },
    **{
        variant: lambda rank, make=make: trained(make(), EIGEN, shares(rank, count=FEW))
        for variant, make in VARIANTS.items()
    },
    "kept after backward sgd": lambda rank: trained(kept_after_backward(), METHODS["sgd"], shares(rank, count=FEW)),
    "mixed precision": in_halves,
}
