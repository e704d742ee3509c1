"""Problems 8, 9 and 24: two gloo processes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flatwise as fw
from benchmarks.peers.closures import pytorch_optimizer_sam, sam_pytorch
from benchmarks.peers.curvature import by_differences, curvlinops_product
from benchmarks.peers.finding import check, first_line, relative
from benchmarks.peers.numerics import steps
from benchmarks.peers.small import RHO, batches, loss_of, network, ours, trained_by_hand

STEPS = 20


def share(batch: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    return batch[0].chunk(2)[rank], batch[1].chunk(2)[rank]


def sharded() -> nn.Module:
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# --- what each process does -------------------------------------------------------------------------------------------


def recipe(rank: int) -> Tensor:
    """The gradient that `no_sync` around backward alone leaves on a rank."""
    model = DistributedDataParallel(network())
    loss = loss_of(model, share(batches(1)[0], rank))
    with model.no_sync():
        loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def local(rank: int) -> Tensor:
    """The gradient of flatwise's first pass on a rank, told by the displacement."""
    model = DistributedDataParallel(network())
    optimizer = ours(model, perturb="local")
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    for p in optimizer.passes():
        moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
        p.backward(loss_of(model, share(batches(1)[0], rank)))
    return moved


def train_sharded(make: Callable[[nn.Module], Any], rank: int) -> dict[str, Any] | str:
    def train() -> dict[str, Any]:
        model = sharded()
        optimizer = make(model)
        for batch in batches(1) * STEPS:
            steps(optimizer, model, [share(batch, rank)])
        weights = torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])
        return {"weights": weights}

    return attempt(train)


class DataSwap:
    """The restoration that most scripts have, `p.data = old`, in ten lines of our own."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.base = torch.optim.SGD(self.parameters, lr=0.1, momentum=0.9)
        self.zero_grad = self.base.zero_grad

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters]).full_tensor()
        old = [p.data.clone() for p in self.parameters]
        with torch.no_grad():
            for p in self.parameters:
                p.add_(p.grad, alpha=RHO / norm.item())
        closure()
        for p, data in zip(self.parameters, old):
            p.data = data
        self.base.step()


def data_parallel_product(name: str, rank: int) -> Any:
    """A product with ones, of a network under DistributedDataParallel with half of the data on each rank."""
    model, mine = DistributedDataParallel(network()), [share(batches(1)[0], rank)]
    return attempt(lambda: PRODUCTS[name](model, mine))


def sharded_product(name: str, rank: int) -> Any:
    model, mine = sharded(), [share(batches(1)[0], rank)]
    return attempt(lambda: PRODUCTS[name](model, mine))


def attempt(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def eigenthings(model: nn.Module, data: Any) -> Tensor:
    from hessian_eigenthings import DDPHessianOperator

    operator = DDPHessianOperator(model, data, loss_of)
    return operator.matvec(torch.ones(operator.size))


def eigenthings_by_differences(model: nn.Module, data: Any) -> Tensor:
    from hessian_eigenthings import DDPHessianOperator

    operator = DDPHessianOperator(model, data, loss_of, method="finite_difference")
    return operator.matvec(torch.ones(operator.size))


def flatwise(model: nn.Module, data: Any) -> Tensor:
    operator = fw.curvature.hessian(fw.Objective(model, loss_of, data, mode="train"))
    product = operator([torch.ones_like(t) for t in operator.like])
    return torch.cat([(h.full_tensor() if hasattr(h, "full_tensor") else h).reshape(-1) for h in product])


PRODUCTS: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "curvlinops-for-pytorch": curvlinops_product,
    "hessian-eigenthings": eigenthings,
    "hessian-eigenthings by differences": eigenthings_by_differences,
    "flatwise": flatwise,
}

JOBS: dict[str, Callable[[int], Any]] = {
    "recipe": recipe,
    "local": local,
    **{
        f"fsdp {name}": functools.partial(train_sharded, make)
        for name, make in {
            "pytorch_optimizer": pytorch_optimizer_sam,
            "sam-pytorch": sam_pytorch,
            "swap": DataSwap,
            "flatwise": ours,
        }.items()
    },
    **{f"ddp product {name}": functools.partial(data_parallel_product, name) for name in PRODUCTS},
    **{f"fsdp product {name}": functools.partial(sharded_product, name) for name in PRODUCTS},
}


def work(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(JOBS[name](rank), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@functools.cache
def both(name: str) -> tuple[Any, Any]:
    """What the two ranks found."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(folder, name), nprocs=2)
        a, b = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    return a, b


# --- the rows ---------------------------------------------------------------------------------------------------------


def apart(name: str) -> str:
    a, b = both(name)
    return f"the ranks' gradients differ by {float((a - b).abs().max()):.1g}"


@check(
    8,
    "davda54/sam's README (#78)",
    "a gradient per rank: `no_sync` around backward only, under DistributedDataParallel",
)
def no_sync() -> tuple[str, str]:
    a, b = both("local")
    return apart("recipe"), f'`perturb="local"`: the ranks\' displacements differ by {float((a - b).abs().max()):.1g}'


def losses_under_fsdp(name: str) -> str:
    found, _ = both(name)
    if isinstance(found, str):
        return first_line(found)
    model = network()
    start = float(loss_of(model, batches(1)[0]))
    torch.nn.utils.vector_to_parameters(found["weights"], model.parameters())
    reached = float(loss_of(model, batches(1)[0]))
    right = torch.cat([p.detach().reshape(-1) for p in trained_by_hand(batches(1) * STEPS).parameters()])
    off = float((found["weights"] - right).abs().max())
    return f"loss {start:.3f} to {reached:.3f} in {STEPS} steps; {off:.0e} from SAM by hand in one process"


@check(9, "pytorch_optimizer", "FSDP2 on two processes")
def fsdp() -> tuple[str, str]:
    return losses_under_fsdp("fsdp pytorch_optimizer"), losses_under_fsdp("fsdp flatwise")


@check(9, "sam-pytorch", "FSDP2 on two processes")
def fsdp_either() -> tuple[str, str]:
    return losses_under_fsdp("fsdp sam-pytorch"), losses_under_fsdp("fsdp flatwise")


@check(9, "`p.data = old`, as davda54/sam restores", "FSDP2 on two processes")
def fsdp_swapped() -> tuple[str, str]:
    return losses_under_fsdp("fsdp swap"), losses_under_fsdp("fsdp flatwise")


def told(name: str) -> str:
    """How far each rank's product is from that of the whole data."""
    found = both(name)
    if isinstance(found[0], str):
        return first_line(found[0])
    right = by_differences(network, batches(1))
    off = [float((rank.double() - right).norm() / right.norm()) for rank in found]
    apart = float((found[0] - found[1]).norm() / right.norm())
    return f"{relative(max(off))} at most" + (", and other on each rank" if apart > 1e-3 else "")


def product_row(layout: str, peer: str, name: str, asked: str) -> None:
    check(24, peer, asked)(lambda: (told(f"{layout} product {name}"), told(f"{layout} product flatwise")))


HALVES = "a product, DistributedDataParallel with half of the data on each rank"
product_row("ddp", "curvlinops-for-pytorch", "curvlinops-for-pytorch", HALVES)
product_row("ddp", "hessian-eigenthings", "hessian-eigenthings", f"{HALVES}, by its operator for that")
product_row("fsdp", "hessian-eigenthings", "hessian-eigenthings", "a product under FSDP2")
product_row(
    "fsdp",
    "hessian-eigenthings",
    "hessian-eigenthings by differences",
    "a product under FSDP2 by its finite differences",
)
