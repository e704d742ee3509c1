"""Problems 4, 7, 10, 11, 16, 18, 19: what a step computes, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import flatwise as fw
from benchmarks.peers.closures import pytorch_optimizer_sam, sam_pytorch
from benchmarks.peers.finding import check, relative
from benchmarks.peers.small import (
    RHO,
    batches,
    closure_of,
    counted,
    flat,
    loss_of,
    momentum_sgd,
    network,
    ours,
    trained_by_hand,
)


def steps(optimizer: Any, model: nn.Module, data: list[tuple[Tensor, Tensor]], factor: float = 1.0) -> None:
    """One step a batch, driven as the optimizer's documentation says."""
    for batch in data:

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch) * factor
            loss.backward()
            return loss

        if type(optimizer).__module__.startswith("pytorch_optimizer"):
            closure()
        optimizer.step(closure)


def after_an_overflow(make: Any) -> str:
    model = network()
    before = flat(model)
    optimizer = make(model)
    steps(optimizer, model, batches(1), factor=float("inf"))
    weights = flat(model)
    if weights.isfinite().all():
        skipped = optimizer.diagnostics["skipped"]
        return f"weights {'as before' if torch.equal(weights, before) else 'changed'}; {skipped:.0f} step skipped"
    return f"{float((~weights.isfinite()).float().mean()):.0%} of the weights are NaN"


@check(4, "pytorch_optimizer", "an infinite loss in one step, without a scaler")
def overflow() -> tuple[str, str]:
    return after_an_overflow(pytorch_optimizer_sam), after_an_overflow(ours)


@check(4, "sam-pytorch", "an infinite loss in one step, without a scaler")
def overflow_either() -> tuple[str, str]:
    return after_an_overflow(sam_pytorch), after_an_overflow(ours)


@check(6, "timm", "sharpness-aware optimizers in timm's own list")
def in_timm() -> tuple[str, str]:
    from timm.optim import list_optimizers

    found = [name for name in list_optimizers() if "sam" in name.split("_")]
    return f"{len(found)} of {len(list_optimizers())}; turned down in #1366 for want of AMP", all_at_once()


def all_at_once() -> str:
    """float16 with a scaler, three unequal micro-batches, clipping; against float32 on whole batches."""

    def train(sizes: list[int], half: bool) -> Tensor:
        model = network()
        optimizer, scaler = ours(model), torch.amp.GradScaler("cpu", init_scale=256.0, enabled=half)
        for batch in batches(8):
            for p in optimizer.passes(scaler):
                for piece in zip(*(tensor.split(sizes) for tensor in batch)):
                    with torch.autocast("cpu", torch.float16, enabled=half):
                        loss = loss_of(model, piece)
                    p.backward(loss, weight=len(piece[0]))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        return flat(model)

    apart = float((train([6, 6, 4], half=True) - train([16], half=False)).abs().max())
    return f"float16, scaler, unequal micro-batches and clipping at once: {apart:.0e} from float32 on whole batches"


@check(7, "pytorch_optimizer", "two micro-batches: backward on both, then `step(closure)` with the last one's closure")
def accumulation() -> tuple[str, str]:
    first, last = batches(2)
    whole = (torch.cat([first[0], last[0]]), torch.cat([first[1], last[1]]))
    right = flat(trained_by_hand([whole])) - flat(network())
    model = network()
    optimizer = pytorch_optimizer_sam(model)
    for batch in (first, last):
        (loss_of(model, batch) / 2).backward()
    optimizer.step(closure_of(model, optimizer, last))
    theirs = float((flat(model) - flat(network()) - right).norm() / right.norm())
    mine = network()
    train_step = fw.two_pass(ours(mine), mine, torch.nn.functional.cross_entropy, micro_batches=2)
    train_step(*whole)
    error = float((flat(mine) - flat(network()) - right).norm() / right.norm())
    return f"the update is {relative(theirs)} that of the whole batch", relative(error)


def statistics(make: Any) -> str:
    model, plain = network(norm=True), network(norm=True)
    (batch,) = batches(1)
    plain(batch[0])
    steps(make(model), model, [batch])
    gap = float((model[1].running_mean - plain[1].running_mean).abs().max())
    return f"batches counted: {int(model[1].num_batches_tracked)}; running mean {gap:.0e} from one forward's"


@check(10, "pytorch_optimizer", "BatchNorm's running statistics after one step as documented")
def batch_norm() -> tuple[str, str]:
    return statistics(pytorch_optimizer_sam), statistics(ours)


@check(10, "sam-pytorch", "BatchNorm's running statistics after one step")
def batch_norm_either() -> tuple[str, str]:
    return statistics(sam_pytorch), statistics(ours)


@check(
    11,
    "pytorch_optimizer",
    "`disable_running_stats` twice in a row, `enable_running_stats`, then a forward in training mode",
)
def momentum_trick() -> tuple[str, str]:
    from pytorch_optimizer.optimizer.utils.model import disable_running_stats, enable_running_stats

    model = network(norm=True)
    disable_running_stats(model)
    disable_running_stats(model)
    enable_running_stats(model)
    before = model[1].running_mean.clone()
    model(batches(1)[0][0])
    learned = not torch.equal(model[1].running_mean, before)
    theirs = f"momentum {model[1].momentum}: BatchNorm {'still learns' if learned else 'never learns again'}"
    mine = network(norm=True)
    momenta = []
    for p in ours(mine).passes():
        momenta.append(mine[1].momentum)
        p.backward(loss_of(mine, batches(1)[0]))
    return theirs, f"nothing is switched off: momentum {' and '.join(map(str, momenta))} in the two passes"


@check(11, "pytorch_optimizer", "the same helpers around a forward of `InstanceNorm1d(track_running_stats=True)`")
def other_layers() -> tuple[str, str]:
    from pytorch_optimizer.optimizer.utils.model import disable_running_stats

    def with_instance_norm() -> nn.Sequential:
        torch.manual_seed(0)
        norm = nn.Sequential(nn.Unflatten(1, (5, 2)), nn.InstanceNorm1d(5, track_running_stats=True), nn.Flatten())
        return nn.Sequential(nn.Linear(6, 10), norm, nn.Linear(10, 3))

    model = with_instance_norm()
    disable_running_stats(model)
    model(batches(1)[0][0])
    moved = float(model[1][1].running_mean.abs().max())
    mine, plain = with_instance_norm(), with_instance_norm()
    steps(ours(mine), mine, batches(1))
    plain(batches(1)[0][0])
    same = torch.equal(mine[1][1].running_mean, plain[1][1].running_mean)
    return f"missed: the running mean moved by {moved:.2g}", "one forward's, bitwise" if same else "differs"


class Skipping(nn.Module):
    """A layer that a forward may leave out, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if self.skip else x + self.layer(x))


@check(16, "pytorch-lightning-sam-callback", "a layer that the second pass leaves out (its two steps called directly)")
def one_pass_only() -> tuple[str, str]:
    from pytorch_lightning_sam_callback.sam import SAM

    (batch,) = batches(1)
    model = Skipping()
    base, callback = momentum_sgd(model.parameters()), SAM(rho=RHO)
    before = flat(model.layer)
    loss_of(model, batch).backward()
    with torch.no_grad():
        kept = callback._first_step(base)
    model.skip = True
    loss_of(model, batch).backward()
    callback._second_step(base, kept)
    mine = Skipping()
    optimizer = ours(mine)
    for p in optimizer.passes():
        mine.skip = not p.at_weights
        p.backward(loss_of(mine, batch))
    optimizer.step()
    away = lambda layer: f"left {float((flat(layer) - before).norm()):.2g} away"
    return f"the layer is {away(model.layer)}, silently", away(mine.layer)


@check(16, "sam-pytorch", "bfloat16 weights after 1,000 displacements with learning rate 0")
def restoration() -> tuple[str, str]:
    from sam.sam import SAM

    def drift(make: Any) -> float:
        model = network(dtype=torch.bfloat16)
        before = flat(model).float()
        optimizer = make(model)
        for batch in batches(10, dtype=torch.bfloat16) * 100:
            optimizer.step(closure_of(model, optimizer, batch))
        return float((flat(model).float() - before).norm() / before.norm())

    still = lambda model: torch.optim.SGD(model.parameters(), lr=0.0)
    theirs = drift(lambda model: SAM(model.parameters(), still(model), rho=RHO))
    mine = drift(lambda model: fw.SharpnessAware(still(model), fw.methods.SAM(RHO), model=model))
    return f"drifted by {theirs:.2%}: added and subtracted", f"{mine:.2%}: copied back"


def displacement(rho: float, **options: Any) -> float:
    model = network()
    optimizer = pytorch_optimizer_sam(model, **options)
    for group in optimizer.param_groups:
        group["rho"] = rho
    before = flat(model)
    loss_of(model, batches(1)[0]).backward()
    optimizer.first_step()
    return float((flat(model) - before).norm())


@check(18, "pytorch_optimizer", "how far `rho=0.5` moves the weights, without and with `adaptive=True`")
def effective_length() -> tuple[str, str]:
    plain, adaptive = displacement(0.5), displacement(0.5, adaptive=True)
    sam, asam = (told(method) for method in (fw.methods.SAM(0.5), fw.methods.ASAM(0.5, eta=0.0, scaled="all")))
    return f"{plain:.3g} and {adaptive:.2g}; told by nobody", f"{sam:.3g} and {asam:.2g}, told in `diagnostics`"


def told(method: fw.methods.Method) -> float:
    model = network()
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), method, model=model)
    steps(optimizer, model, batches(1))
    return optimizer.diagnostics["displacement_norm"]


@check(
    19, "pytorch_optimizer", "`LookSAM(k=5)` as documented: forwards in ten steps (two full steps of SAM among them)"
)
def promised_savings() -> tuple[str, str]:
    from pytorch_optimizer import LookSAM

    model = network()
    runs = counted(model)
    optimizer = LookSAM(model.parameters(), torch.optim.SGD, rho=RHO, k=5, lr=0.1, momentum=0.9)
    steps(optimizer, model, batches(10))
    mine = network()
    own = counted(mine)
    method = fw.methods.LookSAM(RHO, every=5)
    steps(fw.SharpnessAware(momentum_sgd(mine.parameters()), method, model=mine), mine, batches(10))
    return f"{len(runs)}, as many as SAM", f"{len(own)}"
