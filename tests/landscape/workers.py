"""What each of two gloo processes finds. A module of its own, so that spawned processes can import it by name."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from curvature.workers import batches, fsdp, loss_of, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flatwise as fw
from flatwise.landscape import line, path, random_direction

SIZES = [[7, 4, 3], [5]]
LENGTHS = [-0.5, 0.0, 1.0]


def normalised(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def slices(model, data):
    """The losses along a random direction, and on a path with recomputed statistics, and how many samples there were."""
    objective = fw.Objective(model, loss_of, data, mode="eval")
    along = line(objective, random_direction(objective), LENGTHS)
    between = path(objective, normalised(1).state_dict(), normalised(2).state_dict(), LENGTHS)
    return along.losses, between.losses, between.record.samples


def sharded(rank):
    """A line of parameters that FSDP2 shards, and whether the shards are back."""
    model = fsdp(torch.float64)
    objective = fw.Objective(model, loss_of, batches(SIZES[rank], rank))
    before = [p.detach().to_local().clone() for p in model.parameters()]
    losses = line(objective, random_direction(objective), LENGTHS).losses
    return losses, all(torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True))


def whole():
    """The same line in one process."""
    objective = fw.Objective(
        network(), loss_of, [b for rank in range(2) for b in batches(SIZES[rank], rank)], group=None
    )
    return line(objective, random_direction(objective), LENGTHS).losses


def run(rank, folder):
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=60), world_size=2, rank=rank)
    found = slices(DistributedDataParallel(normalised()), batches(SIZES[rank], rank)), sharded(rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
