"""What each of two gloo processes does for the problems that need two. Spawned processes import it by name."""

import contextlib
import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw

STEPS = 10


def share(batch, rank):
    """This rank's half of a batch."""
    return [tensor.chunk(2)[rank] for tensor in batch]


def wrapped(model, **options):
    return fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model, **options)


def problem_6(rank):
    model = DistributedDataParallel(network())
    optimizer = wrapped(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for batch in batches(8):
        for p in optimizer.passes(scaler):
            first, last = zip(*(tensor.split([5, 3]) for tensor in share(batch, rank)))
            for piece, quiet in ((first, model.no_sync()), (last, contextlib.nullcontext())):
                with quiet:
                    with torch.autocast("cpu", torch.float16):
                        loss = loss_of(model, piece)
                    p.backward(loss, weight=len(piece[0]))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    return flat(model)


def problem_7(rank):
    """Nine of the sixteen samples on one rank, seven on the other, each in two micro-batches."""
    model = DistributedDataParallel(network())
    optimizer = wrapped(model)
    for batch in batches(8):
        mine = [tensor.split([9, 7])[rank] for tensor in batch]
        for p in optimizer.passes():
            for piece in zip(*(tensor.split([4, 5] if rank == 0 else [5, 2]) for tensor in mine)):
                p.backward(loss_of(model, piece), weight=len(piece[0]))
        optimizer.step()
    return flat(model)


def two_pass(rank):
    """The same shares of equal size, through the helper, which cuts them itself."""
    model = DistributedDataParallel(network())
    train_step = fw.two_pass(wrapped(model), model, nn.functional.cross_entropy, micro_batches=3)
    for batch in batches(8):
        train_step(*share(batch, rank))
    return flat(model)


def problem_8(rank):
    found = {}
    (batch,) = batches(1)
    ways = {"local": "local", "global": "global", "groups": init_device_mesh("cpu", (2,))}
    for name, perturb in ways.items():
        # Replicas along a mesh are averaged by the optimizer; between them there is nothing to wrap.
        model = network() if name == "groups" else DistributedDataParallel(network())
        optimizer = wrapped(model, perturb=perturb)
        before = flat(model)
        for p in optimizer.passes():
            if not p.at_weights:
                found[f"{name} displacement"] = flat(model) - before
            p.backward(loss_of(model, share(batch, rank)))
        optimizer.step()
        found[f"{name} weights"] = flat(model)
    return found


def sharded_network():
    """Under FSDP2, layer by layer."""
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def problem_9(rank):
    model = sharded_network()
    optimizer = wrapped(model)
    losses, restored = [], []
    for batch in batches(1) * STEPS:
        before = [p.detach().to_local().clone() for p in model.parameters()]
        for p in optimizer.passes():
            loss = loss_of(model, share(batch, rank))
            p.backward(loss)
        restored += [torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before)]
        optimizer.step()
        losses.append(optimizer.diagnostics["loss"])
    return {
        "weights": torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()]),
        "losses": torch.tensor(losses),
        "restored": all(restored),
        "displacement norm": optimizer.diagnostics["displacement_norm"],
    }


def problem_11(rank):
    """The buffers after each step, and those of a plain loop that starts the step from the same state."""
    model = DistributedDataParallel(network(norm=True))
    optimizer = wrapped(model)
    found = []
    for batch in batches(3):
        first, last = zip(*(tensor.chunk(2) for tensor in share(batch, rank)))
        plain = DistributedDataParallel(copy.deepcopy(model.module))
        with plain.no_sync():
            plain(first[0])
        loss_of(plain, last).backward()
        for p in optimizer.passes():
            with model.no_sync():
                p.backward(loss_of(model, first))
            p.backward(loss_of(model, last))
        optimizer.step()
        found.append(tuple({name: b.clone() for name, b in m.module.named_buffers()} for m in (model, plain)))
    return found[-1]


def problem_24(rank):
    """Twenty of 32 samples on one rank, twelve on the other, in batches of ten and six."""
    data = batches(2)
    mine = [[tensor.split([10, 6])[rank] for tensor in batch] for batch in data]
    bare = network()
    model = DistributedDataParallel(bare)
    objective = fw.Objective(model, loss_of, mine, mode="eval")
    hessian = fw.curvature.hessian(objective)
    product = torch.cat([h.reshape(-1) for h in hessian([torch.ones_like(p) for p in hessian.like])])
    pairs = fw.curvature.top_eigenpairs(hessian, tol=1e-4)
    alone = {
        name: fw.Objective(m, loss_of, mine, mode="eval", group=None).value().item()
        for name, m in (("wrapped", model), ("bare", bare))
    }
    record = {"processes": pairs.record.processes, "samples": pairs.record.samples}
    return {"product": product, "eigenvalue": pairs.values[0], **record, **alone, **sharded_hessian(mine)}


def sharded_hessian(data):
    model = sharded_network()
    before = [p.detach().to_local().clone() for p in model.parameters()]
    hessian = fw.curvature.hessian(fw.Objective(model, loss_of, data, mode="eval"))
    product = hessian([torch.ones_like(p) for p in hessian.like])
    pairs = fw.curvature.top_eigenpairs(hessian, tol=1e-3)
    return {
        "sharded engine": hessian.engine,
        "sharded product": torch.cat([h.full_tensor().reshape(-1) for h in product]),
        "sharded eigenvalue": pairs.values[0],
        "sharded weights kept": all(torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before)),
    }


SCENARIOS = {
    f.__name__.replace("_", " "): f
    for f in (problem_6, problem_7, two_pass, problem_8, problem_9, problem_11, problem_24)
}


def attempt(scenario, rank):
    try:
        return scenario(rank)
    except Exception as error:  # told by the test of this problem; the others still run
        return f"{type(error).__name__}: {error}"


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {name: attempt(scenario, rank) for name, scenario in SCENARIOS.items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
