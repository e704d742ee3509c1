"""What each of two gloo processes measures with operators beyond the Hessian. A module of its own, for spawned processes."""

import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from curvature.workers import SHARES, batches, ddp, fsdp, loss_of, network, whole
from torch import nn

import flatwise as fw
from flatwise import vectors as V
from flatwise.curvature import (
    by_layer,
    curvature_gradient,
    directional_curvature,
    gauss_newton,
    hessian,
    hessian_blocks,
    preconditioned,
    preconditioner,
    restricted,
)

DTYPE = torch.float64


def outputs(model, batch):
    return model(batch[0])


def of_outputs(z, batch):
    return nn.functional.cross_entropy(z, batch[1])


def measured(objective, engines, exact):
    """Products and numbers of every operator, as plain tensors."""
    H = hessian(objective)
    vector = V.random_like(objective.weights, 5)
    parts = by_layer(objective)
    blocks = hessian_blocks(objective, parts)
    found = {f"block {layer}": blocks[layer](V.restrict(vector, places)) for layer, places in parts.items()}
    found["restricted"] = restricted(H, parts["2"])(V.restrict(vector, parts["2"]))
    for engine in engines:
        found[engine] = curvature_gradient(objective, vector, engine).vector
    if exact:
        found["gauss-newton"] = gauss_newton(objective, outputs, of_outputs)(vector)
    found = {name: whole([t for t in product if t is not None]) for name, product in found.items()}
    found["along"] = torch.tensor(directional_curvature(H, vector).value, dtype=DTYPE)
    return found


def preconditioned_by_adam(model, objective, data, loss_weight):
    """After one step of Adam on the mean over all samples of both processes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sum(loss_of(model, batch) * loss_weight(batch) for batch in data).backward()
    optimizer.step()
    operator = preconditioned(hessian(objective), preconditioner(optimizer, objective))
    return whole(operator(V.random_like(operator.like, 5)))


def over(kind, shares, rank, engines=("triple", "products", "gradients"), exact=True):
    data = batches(SHARES[shares][rank], rank, DTYPE)
    model = kind(DTYPE)
    objective = fw.Objective(model, loss_of, data)
    found = measured(objective, engines, exact)
    if shares != "one without":
        total = sum(map(sum, SHARES[shares]))
        found["preconditioned"] = preconditioned_by_adam(
            model, objective, data, lambda batch: 2 * len(batch[1]) / total
        )
    return found


def refused(rank):
    """The words with which a sharded model is refused."""
    objective = fw.Objective(fsdp(DTYPE), loss_of, batches(SHARES["equal"][rank], rank, DTYPE))
    words = []
    for measure in (
        lambda: gauss_newton(objective, outputs, of_outputs),
        lambda: fw.curvature.layer_jacobians(objective, ["0", "2"]),
    ):
        try:
            measure()
        except RuntimeError as error:
            words.append(str(error))
    return words


def one_process(shares):
    data = [batch for rank in range(2) for batch in batches(SHARES[shares][rank], rank, DTYPE)]
    model = network(DTYPE)
    objective = fw.Objective(model, loss_of, data)
    found = measured(objective, ("triple", "products", "gradients"), True)
    total = sum(map(sum, SHARES[shares]))
    found["preconditioned"] = preconditioned_by_adam(model, objective, data, lambda batch: len(batch[1]) / total)
    return found


def scenarios(rank):
    """Each by its name."""
    yield "ddp unequal", lambda: over(ddp, "unequal", rank)
    yield "ddp one without", lambda: over(ddp, "one without", rank)
    yield "fsdp equal", lambda: over(fsdp, "equal", rank, engines=("gradients",), exact=False)
    yield "refused", lambda: refused(rank)


def run(rank, folder):
    """The entry point of a process."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = {}
    for name, scenario in scenarios(rank):
        try:
            found[name] = scenario()
        except Exception:
            found[name] = traceback.format_exc()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
