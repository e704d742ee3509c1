"""Problems 1, 2, 3, 5, 17: how a step is driven."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peers.finding import check, outcome
from benchmarks.peers.small import (
    RHO,
    batches,
    closure_of,
    counted,
    distance,
    flat,
    loss_of,
    momentum_sgd,
    network,
    ours,
    trained_by_hand,
)


def pytorch_optimizer_sam(model: torch.nn.Module, **options: Any) -> Any:
    from pytorch_optimizer import SAM

    return SAM(model.parameters(), torch.optim.SGD, rho=RHO, lr=0.1, momentum=0.9, **options)


def sam_pytorch(model: torch.nn.Module) -> Any:
    from sam.sam import SAM

    return SAM(model.parameters(), momentum_sgd(model.parameters()), rho=RHO)


PEERS = {"pytorch_optimizer": pytorch_optimizer_sam, "sam-pytorch": sam_pytorch}


def without_closure(make: Any) -> str:
    model = network()
    optimizer = make(model)
    loss_of(model, batches(1)[0]).backward()
    try:
        optimizer.step()
    except Exception as error:
        first, *rest = str(error).strip().splitlines()
        shown = f", and {len(rest)} lines that show how" if rest else ""
        return f"{type(error).__name__}: {first.rstrip('.')}{shown}"
    return "works"


@check(1, "pytorch_optimizer", "`loss.backward(); optimizer.step()`")
def no_closure() -> tuple[str, str]:
    return without_closure(pytorch_optimizer_sam), without_closure(ours)


@check(1, "sam-pytorch", "`loss.backward(); optimizer.step()`")
def no_closure_either() -> tuple[str, str]:
    return without_closure(sam_pytorch), without_closure(ours)


def by_closure(make: Any) -> str:
    """Ten steps by `step(closure)` alone, as a trainer that owns the loop makes them."""
    data = batches(10)
    model, plain = network(), network()
    runs, optimizer, base = counted(model), make(model), momentum_sgd(plain.parameters())
    returned = None
    after_one = 0.0
    for i, batch in enumerate(data):
        returned = optimizer.step(closure_of(model, optimizer, batch))
        base.step(closure_of(plain, base, batch))
        after_one = distance(model, plain) if i == 0 else after_one
    first = "the loss" if returned is not None else "None"
    return (
        f"{len(runs)} forwards in 10 steps; after the first step {after_one:.0e} from plain SGD, after all "
        f"{distance(model, trained_by_hand(data)):.0e} from SAM by hand; returns {first}"
    )


@check(
    2, "pytorch_optimizer", "`optimizer.step(closure)` as for `torch.optim.LBFGS` (documented: a backward before it)"
)
def normal_closure() -> tuple[str, str]:
    return by_closure(pytorch_optimizer_sam), by_closure(ours)


@check(2, "sam-pytorch", "`optimizer.step(closure)` as for `torch.optim.LBFGS`")
def normal_closure_either() -> tuple[str, str]:
    return by_closure(sam_pytorch), by_closure(ours)


def through_scaler(make: Any, by_name: bool = False) -> str:
    """One step through a scaler with scale 65,536; the update relative to that of SAM by hand."""
    (batch,) = batches(1)
    model, start = network(), network()
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = scaler.scale(loss_of(model, batch))
        loss.backward()
        return loss

    closure()
    if by_name:
        scaler.step(optimizer, closure=closure)
    else:
        scaler.step(optimizer, closure)
    right = flat(trained_by_hand([batch])) - flat(start)
    return f"the update is {float((flat(model) - flat(start)).norm() / right.norm()):,.0f} times too large, silently"


@check(3, "pytorch_optimizer", "`scaler.step(optimizer, closure=closure)`")
def scaler_by_name() -> tuple[str, str]:
    theirs, own = (
        outcome(lambda make=make: through_scaler(make, by_name=True)) for make in (pytorch_optimizer_sam, ours)
    )
    return theirs, f"{own} (torch's own; `passes(scaler)` is the way)"


@check(3, "pytorch_optimizer", "`scaler.step(optimizer, closure)`, which Accelerate does")
def scaler_by_position() -> tuple[str, str]:
    return outcome(lambda: through_scaler(pytorch_optimizer_sam)), outcome(lambda: through_scaler(ours))


@check(5, "pytorch_optimizer", "`unscale_` before each of the two steps, with `first_step` and `second_step`")
def unscale_twice() -> tuple[str, str]:
    (batch,) = batches(1)

    def theirs() -> None:
        model = network()
        optimizer, scaler = pytorch_optimizer_sam(model), torch.amp.GradScaler("cpu")
        for step in (optimizer.first_step, optimizer.second_step):
            scaler.scale(loss_of(model, batch)).backward()
            scaler.unscale_(optimizer)
            step(zero_grad=True)

    model = network()
    optimizer, scaler = ours(model), torch.amp.GradScaler("cpu")
    for p in optimizer.passes(scaler):
        p.backward(loss_of(model, batch))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return outcome(theirs), f"{distance(model, trained_by_hand([batch])):.0e} from SAM by hand in float32"


def same_graph_twice(make: Any) -> str:
    """A closure around a loss that was computed outside of it."""
    model = network()
    before, optimizer = flat(model), make(model)
    loss = loss_of(model, batches(1)[0])

    def closure() -> torch.Tensor:
        loss.backward()
        return loss

    def step() -> None:
        if make is pytorch_optimizer_sam:
            closure()
        optimizer.step(closure)

    said = outcome(step)
    return f"{said} The weights are left {float((flat(model) - before).norm()):.2g} away"


@check(17, "pytorch_optimizer", "a closure that reuses the loss of the forward before it")
def backward_twice() -> tuple[str, str]:
    return same_graph_twice(pytorch_optimizer_sam), same_graph_twice(ours)


@check(17, "sam-pytorch", "a closure that reuses the loss of the forward before it")
def backward_twice_either() -> tuple[str, str]:
    return same_graph_twice(sam_pytorch), same_graph_twice(ours)
