"""How processes share a model, its data and a step: what scenarios and the tests of their results have in common."""

import torch
from methods.cases import CASES
from optim.problems import BASES, batches, loss_of, mlp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flatwise as fw

STEPS = 50
FEW = 8

METHODS = {case.name: case.method for case in CASES}
SAM = METHODS["sam"]
EIGEN = METHODS["eigen-sam"]  # with the most kinds of passes: it is asked what every method would answer alike


def data(count=STEPS, dtype=torch.float64):
    return batches(count, dtype=dtype)


def share(batch, rank, of=2):
    """This rank's samples."""
    return batch[0].chunk(of)[rank], batch[1].chunk(of)[rank]


def unequal_share(batch, rank):
    """Eleven samples and five."""
    return [t.split([11, 5])[rank] for t in batch]


def network():
    return mlp(torch.float64)


def ddp(net=network, **options):
    return DistributedDataParallel(net(), **options)


def fsdp(mesh=None, net=network, **options):
    """Both layers sharded, and what is left."""
    model, mesh = net(), mesh or init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


LAYOUTS = {"ddp": ddp, "fsdp": fsdp}


def wrapped(model, method, base="sgd", **options):
    return fw.SharpnessAware(BASES[base](model.parameters()), method, model=model, **options)


def step(opt, model, batch):
    for p in opt.passes():
        p.backward(loss_of(model, batch))
    opt.step()


def step_by_closure(opt, model, batch):
    def closure():
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    return opt.step(closure)


def trained(model, method, batches_of_rank, base="sgd", step=step, **options):
    """The weights after a step for each batch."""
    opt = wrapped(model, method, base, **options)
    for batch in batches_of_rank:
        step(opt, model, batch)
    return flat(model)


def shares(rank, of=2, count=STEPS):
    return [share(batch, rank, of) for batch in data(count)]


def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def flat(model):
    return torch.cat([whole(p).detach().reshape(-1) for p in model.parameters()])
