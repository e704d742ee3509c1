"""Scenarios for tensor parallelism on two processes, and with FSDP2 around it on four."""

import contextlib

from distributed.layouts import (
    EIGEN,
    FEW,
    METHODS,
    SAM,
    STEPS,
    data,
    flat,
    network,
    share,
    step,
    trained,
    wrapped,
)
from optim.problems import loss_of, seeded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module


def with_layer_norm():
    layers = lambda: nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 3))
    return seeded(layers).double()


def mesh_of_two():
    return init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))


def by_columns_and_rows(mesh):
    return parallelize_module(network(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def in_part(mesh):
    """Plain parameters among sharded ones."""
    return parallelize_module(with_layer_norm(), mesh, {"0": ColwiseParallel(output_layouts=Replicate())})


def along_the_sequence(mesh):
    """The samples stand for a sequence. Torch leaves the gradients of the normalisation as sums still to be added up."""
    plan = {
        "0": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0)),
        "1": SequenceParallel(sequence_dim=0),
        "3": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    }
    return parallelize_module(with_layer_norm(), mesh, plan)


def restored(rank):
    """The weights before, within and after passes that an exception ends, and the norm of the displacement."""
    model = by_columns_and_rows(mesh_of_two())
    opt = wrapped(model, SAM)
    (batch,) = data(1)
    before, within = flat(model), []
    with contextlib.suppress(KeyError):
        for p in opt.passes():
            within.append(flat(model))
            p.backward(loss_of(model, batch))
            if not p.at_weights:
                raise KeyError
    after = flat(model)
    step(opt, model, batch)
    return {"before": before, "within": within, "after": after, "norm": opt.diagnostics["displacement_norm"]}


def sharded_twice(parallel):
    """FSDP2 over the first dimension of the mesh, tensor parallelism over the second."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = parallel(mesh["tp"])
    for layer in (model[0], model[-1]):
        fully_shard(layer, mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


TWO = {
    **{
        f"columns and rows {name}": lambda rank, m=m: trained(by_columns_and_rows(mesh_of_two()), m, data(FEW))
        for name, m in METHODS.items()
    },
    "columns and rows": lambda rank: trained(by_columns_and_rows(mesh_of_two()), SAM, data(STEPS)),
    "in part": lambda rank: trained(in_part(mesh_of_two()), EIGEN, data(FEW)),
    "along the sequence": lambda rank: trained(along_the_sequence(mesh_of_two()), EIGEN, data(FEW)),
    "restored": restored,
}


def groups_apart(rank):
    """Each tensor-parallel group along its own gradient."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    batches = [share(batch, rank // 2) for batch in data(FEW)]
    return trained(by_columns_and_rows(mesh["tp"]), EIGEN, batches, perturb=mesh["dp"])


FOUR = {
    "groups of tensor parallelism": groups_apart,
    **{
        f"sharded twice, {plan}": lambda rank, make=make: trained(
            sharded_twice(make), EIGEN, [share(batch, rank // 2) for batch in data(FEW)]
        )
        for plan, make in {"columns and rows": by_columns_and_rows, "in part": in_part}.items()
    },
}
