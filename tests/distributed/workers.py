"""What each of two gloo processes does. A module of its own, so that spawned processes can import it by name.

Every scenario returns plain tensors and numbers; `run` writes them to `<folder>/<rank>.pt` for the tests to read.
"""

import contextlib
import copy
import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flatwise as fw
from flatwise.methods import SAM, SGD, EigenSAM, GradientNorm, ReverseSAM

STEPS = 25
METHODS = {
    "sgd": SGD(),
    "sam": SAM(rho=0.1),
    "eigen-sam": EigenSAM(rho=0.1, alpha=0.5, every=5, iterations=3),
    "reverse-sam": ReverseSAM(rho=0.1),
    "gradient-norm": GradientNorm(rho=0.1),
}


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))


def data(count=STEPS, size=16):
    generator = torch.Generator().manual_seed(1)
    draw = lambda: (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator))
    return [draw() for _ in range(count)]


def share(batch, rank, of=2):
    """This rank's samples."""
    return batch[0].chunk(of)[rank], batch[1].chunk(of)[rank]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def ddp(rank):
    return DistributedDataParallel(network())


def ddp_with_bucket_views(rank):
    """Gradients are views into buffers that the next backward overwrites."""
    return DistributedDataParallel(network(), gradient_as_bucket_view=True)


def fsdp(rank):
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def wrapped(model, method, base="sgd", **options):
    make = {
        "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
        "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    }[base]
    return fw.SharpnessAware(make(model.parameters()), method, model=model, **options)


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


def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def flat(model):
    return torch.cat([whole(p).detach().reshape(-1) for p in model.parameters()])


def trained(rank, make, method, base="sgd", data=data, step=step, **options):
    model = make(rank)
    opt = wrapped(model, method, base, **options)
    for batch in data():
        step(opt, model, share(batch, rank))
    return flat(model)


def losses(rank, make, method):
    model = make(rank)
    opt = wrapped(model, method)
    return torch.tensor([float(step_by_closure(opt, model, share(batch, rank))) for batch in data(5)])


def accumulated(rank, make, method):
    """Two micro-batches a rank, the first one without synchronisation of the gradients as users do it."""

    def accumulate(opt, model, batch):
        for p in opt.passes():
            for i in range(2):
                quiet = i == 0 and hasattr(model, "no_sync")
                with model.no_sync() if quiet else contextlib.nullcontext():
                    p.backward(loss_of(model, share(batch, i)))
        opt.step()

    return trained(rank, make, method, data=few, step=accumulate)


def recorded(rank, make, method):
    """The same with somebody else's backward, as Accelerate does it: local gradients until the last micro-batch."""

    def record(opt, model, batch):
        for p in opt.passes():
            for i in range(2):
                quiet = i == 0 and hasattr(model, "no_sync")
                with model.no_sync() if quiet else contextlib.nullcontext():
                    loss = loss_of(model, share(batch, i))
                    loss.backward()
                p.record(loss)
        opt.step()

    return trained(rank, make, method, data=few, step=record)


def one_rank_overflows(rank, make, method, evaluation, **options):
    """In step 2, evaluation `evaluation` of rank 1 is not finite. Weights before and after it, and at the end."""
    model = make(rank)
    opt = wrapped(model, method, **options)
    seen = []
    for number, batch in enumerate(data(5)):
        before = flat(model)
        for i, p in enumerate(opt.passes()):
            bad = number == 2 and rank == 1 and i == evaluation
            p.backward(loss_of(model, share(batch, rank)) * (math.inf if bad else 1.0))
        opt.step()
        seen.append(torch.equal(flat(model), before))
    return {"unmoved": seen, "weights": flat(model), "skipped": opt.diagnostics["skipped"]}


def resumed(rank, make, method, base):
    """Through torch.distributed.checkpoint.state_dict, into objects that never stepped."""
    model = make(rank)
    opt = wrapped(model, method, base)
    first, rest = data(12)[:6], data(12)[6:]
    for batch in first:
        step(opt, model, share(batch, rank))
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))
    again = make(rank)
    again.load_state_dict(model.state_dict())
    fresh = wrapped(again, method, base)
    set_optimizer_state_dict(again, fresh, state)
    for batch in rest:
        step(opt, model, share(batch, rank))
        step(fresh, again, share(batch, rank))
    return flat(model), flat(again)


def interrupted(rank, make, method):
    """An exception in the displaced pass on every rank: what the weights are then, and after a normal step."""
    model, twin = make(rank), make(rank)
    opt, other = wrapped(model, method), wrapped(twin, method)
    batch = share(data(1)[0], rank)
    before = flat(model)
    with contextlib.suppress(KeyError):
        for p in opt.passes():
            if not p.at_weights and not p.is_probe:
                raise KeyError
            p.backward(loss_of(model, batch))
    restored = flat(model)
    step(opt, model, batch)
    step(other, twin, batch)
    return before, restored, flat(model), flat(twin)


def synchronised_gradients(rank):
    """Whether the first pass under perturb="local" left different gradients on the ranks; and under "global"."""
    found = {}
    for perturb in ("local", "global"):
        model = ddp(rank)
        opt = wrapped(model, SAM(rho=0.1), perturb=perturb)
        batch = share(data(1)[0], rank)
        before = flat(model)
        for p in opt.passes():
            if not p.at_weights:
                found[perturb] = flat(model) - before
            p.backward(loss_of(model, batch))
        opt.step()
        found[perturb + " weights"] = flat(model)
    return found


def message(function):
    try:
        function()
    except (ValueError, TypeError) as error:
        return str(error)
    return None


LAYOUTS = {"ddp": ddp, "fsdp": fsdp}
SHORT = (
    "sgd",
    "reverse-sam",
    "gradient-norm",
)  # all steps where the contract says so, fewer for the rest, to save time


def few():
    return data(8)


def scenarios_of(kind):
    """What is asked of both layouts."""
    make, sam, eigen = LAYOUTS[kind], METHODS["sam"], METHODS["eigen-sam"]
    return {
        f"{kind} sam": lambda rank: trained(rank, make, sam),
        f"{kind} eigen-sam": lambda rank: trained(rank, make, eigen),
        **{f"{kind} {name}": lambda rank, m=METHODS[name]: trained(rank, make, m, data=few) for name in SHORT},
        f"{kind} adamw sam": lambda rank: trained(rank, make, sam, "adamw"),
        f"{kind} adamw eigen-sam": lambda rank: trained(rank, make, eigen, "adamw"),
        f"{kind} losses": lambda rank: losses(rank, make, sam),
        f"{kind} closures": lambda rank: trained(rank, make, eigen, data=few, step=step_by_closure),
        f"{kind} passes": lambda rank: trained(rank, make, eigen, data=few),
        f"{kind} accumulated": lambda rank: accumulated(rank, make, sam),
        f"{kind} recorded": lambda rank: recorded(rank, make, sam),
        **{f"{kind} overflow in {i}": lambda rank, i=i: one_rank_overflows(rank, make, sam, i) for i in (0, 1)},
        **{f"{kind} resumed {base}": lambda rank, b=base: resumed(rank, make, eigen, b) for base in ("sgd", "adamw")},
        f"{kind} interrupted": lambda rank: interrupted(rank, make, sam),
    }


def local_overflow(rank, evaluation):
    return one_rank_overflows(rank, ddp, METHODS["sam"], evaluation, perturb="local")


SCENARIOS = {
    **scenarios_of("ddp"),
    **scenarios_of("fsdp"),
    "bucket views gradient-norm": lambda rank: trained(rank, ddp_with_bucket_views, METHODS["gradient-norm"], data=few),
    "bucket views eigen-sam": lambda rank: trained(rank, ddp_with_bucket_views, METHODS["eigen-sam"], data=few),
    "local sam": lambda rank: trained(rank, ddp, METHODS["sam"], perturb="local"),
    "local reverse-sam": lambda rank: trained(rank, ddp, METHODS["reverse-sam"], perturb="local"),
    "local gradient-norm": lambda rank: trained(rank, ddp, METHODS["gradient-norm"], perturb="local"),
    "local overflow in 0": lambda rank: local_overflow(rank, 0),
    "local overflow in 1": lambda rank: local_overflow(rank, 1),
    "first pass": synchronised_gradients,
    "fsdp local": lambda rank: message(lambda: wrapped(fsdp(rank), SAM(), perturb="local")),
    "bare local": lambda rank: message(lambda: wrapped(network(), SAM(), perturb="local")),
}


def attempt(scenario, rank):
    try:
        return scenario(rank)
    except Exception as error:  # handed to the test of this scenario; the others still run
        return error.__class__.__name__ + ": " + str(error)


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {name: attempt(scenario, rank) for name, scenario in SCENARIOS.items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
