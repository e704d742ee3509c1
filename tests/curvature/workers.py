"""What each of two gloo processes measures. A module of its own, so that spawned processes can import it by name.

Every scenario returns plain tensors and numbers; `run` writes them to `<folder>/<rank>.pt` for the tests to read.
"""

import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import flatwise as fw
from flatwise import vectors as V
from flatwise.curvature import hessian, top_eigenpairs

SHARES = {
    "equal": [[4, 4], [4, 4]],
    "unequal": [[7, 1, 2], [3]],
    "one without": [[5, 4], []],
}
"""Sizes of the batches of each rank."""


def network(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(sizes, rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rank + 1)
    draw = lambda n: torch.randn(n, 6, generator=generator, dtype=torch.float64).to(dtype)
    return [(draw(n), torch.randint(3, (n,), generator=generator)) for n in sizes]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def ddp(dtype):
    return DistributedDataParallel(network(dtype))


def fsdp(dtype):
    model = network(dtype)
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def hybrid(dtype):
    """Sharded over one process and replicated over two."""
    return fully_shard(network(dtype), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))


def split():
    """Tensor parallel: by columns and rows."""
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(network(), init_device_mesh("cpu", (2,)), plan)


def whole(vector):
    full = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in vector]
    return torch.cat([t.detach().reshape(-1) for t in full])


def measured(objective, pairs=1, **options):
    """The loss, gradient, a product and, if asked for, top eigenpairs, with how they came about."""
    H = hessian(objective, **options)
    product = H(V.random_like(H.like, 5))
    value, gradient = objective.value_and_gradient()
    found = {
        "value": value,
        "value alone": objective.value(),
        "gradient": whole(gradient),
        "product": whole(product),
        "record": vars(H.record),
    }
    if pairs:
        top = top_eigenpairs(H, pairs)
        found |= {"eigenvalues": torch.tensor(top.values), "eigenvector": whole(top.vectors[0])}
    return found


def data_parallel(rank, shares):
    return measured(fw.Objective(ddp(torch.float64), loss_of, batches(SHARES[shares][rank], rank)))


def given_group(rank, shares):
    group = dist.group.WORLD
    return measured(fw.Objective(network(), loss_of, batches(SHARES[shares][rank], rank), group=group))


def alone(rank):
    return measured(fw.Objective(ddp(torch.float64), loss_of, batches(SHARES["equal"][rank], rank), group=None))


def differences(rank, shares, engine):
    return measured(fw.Objective(ddp(torch.float64), loss_of, batches(SHARES[shares][rank], rank)), engine=engine)


def bounded(rank, make, shares):
    """Batches cut by a bound on memory, also on a process without any."""
    data = batches(SHARES[shares][rank], rank)
    bound = max(1, fw.Objective(make(torch.float64), loss_of, data).forecast().memory(4) - 1)
    sizes = []
    watched = lambda model, batch: sizes.append(len(batch[1])) or loss_of(model, batch)
    objective = fw.Objective(make(torch.float64), watched, data, max_memory=bound)
    found = measured(objective, pairs=0)
    sizes.clear()
    objective.value()
    return found | {"largest": max(sizes, default=0)}


def sharded(rank, make, shares, dtype, **options):
    return measured(fw.Objective(make(dtype), loss_of, batches(SHARES[shares][rank], rank, dtype)), **options)


def tensor_parallel(rank):
    """One copy of the weights, split by columns and rows over both processes, each of which sees all data."""
    data = [batch for r in range(2) for batch in batches(SHARES["equal"][r], r)]
    return measured(fw.Objective(split(), loss_of, data))


def trained(rank, make, measure):
    """Weights after three steps, with measurements between them or without."""
    model = make(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    objective = fw.Objective(model, loss_of, batches([3, 2], rank, torch.float32))
    for batch in batches([4, 4, 4], rank, torch.float32):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        if measure:
            hessian(objective)(objective.weights)
            objective.value()
        optimizer.step()
        if measure:
            objective.value_and_gradient()
    return whole(model.parameters())


def interrupted(rank):
    """An exception in a displaced gradient of a sharded model."""
    model, calls = fsdp(torch.float64), []
    before = whole(model.parameters())

    def fails(model, batch):
        calls.append(1)
        if len(calls) > 12:
            raise KeyError("now")
        return loss_of(model, batch)

    try:
        hessian(fw.Objective(model, fails, batches([4], rank)))
    except KeyError:
        return before, whole(model.parameters())


def refused(rank):
    model = fsdp(torch.float64)
    try:
        fw.Objective(model, loss_of, batches([4], rank), group=None)
    except ValueError as error:
        first = str(error)
    try:
        fw.Objective(model, loss_of, batches([4], rank)).hvp([p.detach() for p in model.parameters()])
    except RuntimeError as error:
        second = str(error)
    for module in (model[0], model[2]):
        module.set_gradient_divide_factor(1.0)
    try:
        hessian(fw.Objective(model, loss_of, batches([4], rank)))
    except RuntimeError as error:
        return first, second, str(error)


def unwrapped(rank):
    """What objectives say among several processes: of a plain model, and of some that know what they belong to."""
    data, found = batches([4], rank), []
    for model, options in (
        (network(), {}),
        (network(), {"group": None}),
        (network(), {"group": dist.group.WORLD}),
        (ddp(torch.float64), {}),
        (fsdp(torch.float64), {}),
        (split(), {}),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hessian(fw.Objective(model, loss_of, data, **options).subset(4))
        found.append([str(w.message) for w in caught])
    return found


def scenarios():
    for shares in SHARES:
        yield f"ddp {shares}", data_parallel, {"shares": shares}
        yield f"group {shares}", given_group, {"shares": shares}
    yield "alone", alone, {}
    for engine in ("forward", "differences", "one-sided"):
        yield f"ddp {engine}", differences, {"shares": "unequal", "engine": engine}
    yield "fsdp", sharded, {"make": fsdp, "shares": "unequal", "dtype": torch.float64}
    yield "fsdp float32", sharded, {"make": fsdp, "shares": "equal", "dtype": torch.float32, "pairs": 0}
    yield (
        "fsdp one-sided",
        sharded,
        {"make": fsdp, "shares": "equal", "dtype": torch.float64, "engine": "one-sided", "pairs": 0},
    )
    yield "hybrid", sharded, {"make": hybrid, "shares": "unequal", "dtype": torch.float64, "pairs": 0}
    yield "ddp bounded", bounded, {"make": ddp, "shares": "one without"}
    yield "fsdp bounded", bounded, {"make": fsdp, "shares": "unequal"}
    yield "tensor parallel", tensor_parallel, {}
    for name, make in (("ddp", ddp), ("fsdp", fsdp)):
        for measure in (True, False):
            yield f"{name} trained {measure}", trained, {"make": make, "measure": measure}
    yield "interrupted", interrupted, {}
    yield "refused", refused, {}
    yield "unwrapped", unwrapped, {}


def run(rank, folder):
    """The entry point of a process."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    # A collective that only one process reaches fails soon.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = {}
    for name, scenario, options in scenarios():
        try:
            found[name] = scenario(rank, **options)
        except Exception:
            found[name] = traceback.format_exc()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
