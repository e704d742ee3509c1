"""Scenarios for checkpoints: in memory, on disk, and read by another number of processes than wrote them."""

import contextlib
import copy
import warnings

import torch
import torch.distributed.checkpoint as dcp
from distributed import processes
from distributed.layouts import EIGEN, LAYOUTS, data, ddp, flat, fsdp, network, share, step, wrapped
from distributed.on_groups import meshes
from distributed.on_tensor_parallel import by_columns_and_rows, mesh_of_two, sharded_twice
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

BEFORE, AFTER = 5, 4  # steps; Eigen-SAM's vector is two steps old when it is saved, and refreshed after one more
BATCHES = data(BEFORE + AFTER)


def started(model, base="adamw"):
    return model, wrapped(model, EIGEN, base)


def run(model, opt, batches):
    for batch in batches:
        step(opt, model, batch)
    return flat(model)


def states_of(model, opt):
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, opt)}


def save(model, opt, folder):
    with alone_without_a_warning():
        dcp.save(states_of(model, opt), checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())


def load(model, opt, folder):
    """As the documentation of torch shows it: into the states of a model and an optimizer that never stepped."""
    states = states_of(model, opt)
    with alone_without_a_warning():
        dcp.load(states, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
    set_model_state_dict(model, states["model"])
    set_optimizer_state_dict(model, opt, states["optimizer"])


@contextlib.contextmanager
def alone_without_a_warning():
    """Torch warns of a single process also where it is told that there is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def in_memory(rank, make, base):
    """The weights of the run that went on, and of the one that resumed."""
    batches = [share(batch, rank) for batch in BATCHES]
    model, opt = started(make(), base)
    run(model, opt, batches[:BEFORE])
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))
    again, fresh = started(make(), base)
    set_model_state_dict(again, get_model_state_dict(model))
    set_optimizer_state_dict(again, fresh, state)
    return run(model, opt, batches[BEFORE:]), run(again, fresh, batches[BEFORE:])


def on_disk(rank, kind):
    """Saved as `two-<kind>`, and read again by as many processes."""
    batches = [share(batch, rank) for batch in BATCHES]
    folder = f"{processes.folder()}/two-{kind}"
    model, opt = started(LAYOUTS[kind]())
    run(model, opt, batches[:BEFORE])
    save(model, opt, folder)
    again, fresh = started(LAYOUTS[kind]())
    load(again, fresh, folder)
    return run(model, opt, batches[BEFORE:]), run(again, fresh, batches[BEFORE:])


def by_one(folder):
    """Saved by one process as `one`."""
    model, opt = started(network())
    run(model, opt, BATCHES[:BEFORE])
    save(model, opt, f"{folder}/one")


def uninterrupted():
    """What one process makes of all batches."""
    return run(*started(network()), BATCHES)


def read_by_one(folder, kind):
    """What one process makes of the checkpoint of two."""
    model, opt = started(network())
    load(model, opt, f"{folder}/two-{kind}")
    return run(model, opt, BATCHES[BEFORE:])


def of_one(make, rank, of):
    """What several processes make of the checkpoint of one."""
    model, opt = started(make())
    load(model, opt, f"{processes.folder()}/one")
    return run(model, opt, [share(batch, rank, of) for batch in BATCHES[BEFORE:]])


def vector_of(opt):
    """Eigen-SAM's vector, as the checkpoint has it."""
    return torch.cat([entry["flatwise.eigenvector"].reshape(-1) for entry in opt.state_dict()["state"].values()])


IN_MEMORY = [("ddp", "sgd", ddp), ("ddp", "adamw", ddp), ("fsdp", "adamw", fsdp)]

TWO = {
    **{
        f"{kind} in memory {base}": lambda rank, base=base, make=make: in_memory(rank, make, base)
        for kind, base, make in IN_MEMORY
    },
    **{f"{kind} on disk": lambda rank, kind=kind: on_disk(rank, kind) for kind in LAYOUTS},
    **{f"{kind} of one": lambda rank, make=make: of_one(make, rank, 2) for kind, make in LAYOUTS.items()},
    "tensor parallel of one": lambda rank: of_one(lambda: by_columns_and_rows(mesh_of_two()), 0, 1),
}

FOUR = {
    "hybrid of one": lambda rank: of_one(lambda: fsdp(meshes()), rank, 4),
    "sharded twice of one": lambda rank: of_one(lambda: sharded_twice(by_columns_and_rows), rank // 2, 2),
}
