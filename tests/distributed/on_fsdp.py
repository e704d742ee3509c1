"""Scenarios for two processes under FSDP2."""

import torch
from distributed.layouts import EIGEN, FEW, METHODS, SAM, STEPS, fsdp, network, shares, trained
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

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


VARIANTS = {
    "kept after forward": lambda: fsdp(reshard_after_forward=False),
    "kept after backward": kept_after_backward,
    "in one piece": lambda: fully_shard(network()),
}

SCENARIOS = {
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
