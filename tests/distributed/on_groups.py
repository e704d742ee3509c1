"""Scenarios for four processes in two groups of two."""

import torch
from distributed.layouts import EIGEN, FEW, METHODS, SAM, STEPS, ddp, flat, fsdp, network, shares, trained, wrapped
from distributed.processes import refusal
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def meshes():
    """Two replicas, each of two shards."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def groups_of_shards(mesh):
    return fsdp(mesh["shard"])


def groups_under_ddp(mesh):
    return ddp(process_group=mesh["shard"].get_group())


def apart(rank, make, method, steps):
    """Each group along its own gradient."""
    mesh = meshes()
    return trained(make(mesh), method, shares(rank, of=4, count=steps), perturb=mesh["replicate"])


def each_alone(rank):
    """No wrapper at all: four replicas, made equal by their seed."""
    mesh = init_device_mesh("cpu", (4,))
    return trained(network(), EIGEN, shares(rank, of=4, count=FEW), perturb=mesh)


def displaced(rank):
    """How each rank's group was displaced."""
    mesh = meshes()
    model = groups_of_shards(mesh)
    opt = wrapped(model, SAM, perturb=mesh["replicate"])
    (batch,) = shares(rank, of=4, count=1)
    before = flat(model)
    for p in opt.passes():
        if not p.at_weights:
            found = flat(model) - before
        p.backward(nn.functional.cross_entropy(model(batch[0]), batch[1]))
    return found


def refused(rank):
    """What cannot be had, by what was tried."""
    mesh = meshes()
    different = network()
    with torch.no_grad():
        different[0].weight += rank
    first_step = lambda model, over: next(iter(wrapped(model, SAM, perturb=over).passes()))
    return {
        "hybrid sharding, locally": refusal(lambda: wrapped(fsdp(mesh), SAM, perturb="local")),
        "hybrid sharding, over a mesh": refusal(lambda: wrapped(fsdp(mesh), SAM, perturb=mesh["replicate"])),
        "all ranks in one DDP": refusal(lambda: wrapped(ddp(), SAM, perturb=mesh["replicate"])),
        "a mesh of two dimensions": refusal(lambda: wrapped(network(), SAM, perturb=mesh)),
        "different weights": refusal(lambda: first_step(different, DeviceMesh("cpu", range(4)))),
    }


FOUR = {
    "hybrid": lambda rank: trained(fsdp(meshes()), EIGEN, shares(rank, of=4, count=FEW)),
    "groups of fsdp, fifty steps": lambda rank: apart(rank, groups_of_shards, SAM, STEPS),
    "groups of fsdp": lambda rank: apart(rank, groups_of_shards, EIGEN, FEW),
    **{
        f"groups of ddp {name}": lambda rank, m=m: apart(rank, groups_under_ddp, m, FEW)
        for name, m in METHODS.items()
        if not m.adaptive
    },
    "each alone": each_alone,
    "displaced": displaced,
    "refused": refused,
}
