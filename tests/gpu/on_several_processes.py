"""Scenarios for two processes on CUDA devices: one of their own each, or one for both where there are no two."""

import torch
from distributed.layouts import EIGEN, FEW, ddp, fsdp, network, shares, trained
from distributed.on_ddp import with_norm
from torch import nn
from torch.distributed.device_mesh import init_device_mesh


def device_of(rank):
    return torch.device("cuda", rank % torch.cuda.device_count())


def on_device(rank, make, **options):
    """The weights after training as on the CPU."""
    device = device_of(rank)
    torch.cuda.set_device(device)
    batches = [(x.to(device), y.to(device)) for x, y in shares(rank, count=FEW)]
    return trained(make(device), EIGEN, batches, **options).cpu()


def replicated(device):
    return ddp(lambda: network().to(device))


def with_sync_batch_norm(device):
    return ddp(lambda: nn.SyncBatchNorm.convert_sync_batchnorm(with_norm()).to(device))


def sharded(device):
    return fsdp(init_device_mesh("cuda", (2,)), lambda: network().to(device))


ON_ONE = {"statistics over ranks": lambda rank: on_device(rank, with_sync_batch_norm)}

ON_TWO = {
    "ddp": lambda rank: on_device(rank, replicated),
    "local": lambda rank: on_device(rank, replicated, perturb="local"),
    "fsdp": lambda rank: on_device(rank, sharded),
}
