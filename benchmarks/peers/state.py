"""Problems 12 to 15: what is saved, what schedulers see, groups."""

from __future__ import annotations

import copy
from typing import Any

import torch

import flatwise as fw
from benchmarks.peers.closures import pytorch_optimizer_sam, sam_pytorch
from benchmarks.peers.finding import check, outcome
from benchmarks.peers.numerics import steps
from benchmarks.peers.small import RHO, batches, distance, flat, loss_of, momentum_sgd, network, ours


def resumed(make: Any) -> str:
    """Five steps, a checkpoint, five more; and the same five from the checkpoint."""
    data = batches(10)
    model, again = network(), network()
    optimizer = make(model)
    steps(optimizer, model, data[:5])
    saved = copy.deepcopy(optimizer.state_dict())
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    other = make(again)
    other.load_state_dict(saved)
    tensors = {name for entry in saved["state"].values() for name, value in entry.items() if value.ndim}
    steps(optimizer, model, data[5:])
    steps(other, again, data[5:])
    holds = ", ".join(sorted(tensors)) or "no tensor"
    return f"the checkpoint holds {holds}; resumed, the weights are {distance(model, again):.0e} from the uninterrupted run's"


@check(12, "sam-pytorch", "save and resume with momentum")
def resume() -> tuple[str, str]:
    return resumed(sam_pytorch), resumed(ours)


@check(12, "pytorch_optimizer", "save and resume with momentum (its 3.9 lost it, as davda54/sam does)")
def resume_either() -> tuple[str, str]:
    return resumed(pytorch_optimizer_sam), resumed(ours)


def asked_by_dcp(make: Any) -> str:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = network()
    optimizer = make(model)
    before = flat(model)

    def ask() -> str:
        found = get_optimizer_state_dict(model, optimizer)
        same = "as they were" if torch.equal(flat(model), before) else "changed"
        return f"works: the state of {len(found['state'])} parameters; weights {same}"

    return outcome(ask)


@check(13, "pytorch_optimizer", "`torch.distributed.checkpoint`'s `get_optimizer_state_dict` before the first step")
def distributed_checkpoint() -> tuple[str, str]:
    return asked_by_dcp(pytorch_optimizer_sam), asked_by_dcp(ours)


@check(13, "sam-pytorch", "`torch.distributed.checkpoint`'s `get_optimizer_state_dict` before the first step")
def distributed_checkpoint_either() -> tuple[str, str]:
    return asked_by_dcp(sam_pytorch), asked_by_dcp(ours)


def scheduled(make: Any) -> str:
    model = network()
    optimizer = make(model)
    base = getattr(optimizer, "optim", None) or getattr(optimizer, "base_optimizer", None) or optimizer.base

    def halve() -> str:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        steps(optimizer, model, batches(1))
        scheduler.step()
        return f"the base optimizer steps with lr {base.param_groups[0]['lr']}"

    return outcome(halve)


@check(14, "sam-pytorch", "a scheduler that halves lr 0.1 after each step, on the wrapper")
def scheduler() -> tuple[str, str]:
    return scheduled(sam_pytorch), scheduled(ours)


def warned(make: Any) -> str:
    """Whether torch warns that the scheduler was stepped before the optimizer, in a loop of two-step use."""
    import warnings

    model = network()
    optimizer = make(model)
    (batch,) = batches(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        if make is ours:
            for p in optimizer.passes():
                p.backward(loss_of(model, batch))
            optimizer.step()
        else:
            for step in (optimizer.first_step, optimizer.second_step):
                loss_of(model, batch).backward()
                step(zero_grad=True)
        scheduler.step()
    found = [str(w.message) for w in caught if "lr_scheduler.step()" in str(w.message)]
    return f"warns: {found[0].split('. ')[0]}" if found else "no warning"


@check(14, "pytorch_optimizer", "a scheduler after `first_step` and `second_step`, which did step")
def false_warning() -> tuple[str, str]:
    return warned(pytorch_optimizer_sam), warned(ours)


def added(make: Any) -> str:
    model = network()
    optimizer = make(model[2])
    optimizer.add_param_group({"params": [*model[0].parameters()]})
    before = flat(model[0])

    def step() -> str:
        steps(optimizer, model, batches(1))
        return "works" if not torch.equal(flat(model[0]), before) else "the group is not trained"

    return outcome(step)


@check(15, "pytorch_optimizer", "a step after `add_param_group`")
def add_group() -> tuple[str, str]:
    return added(pytorch_optimizer_sam), added(ours)


@check(15, "sam-pytorch", "two parameter groups, the second with another rho")
def two_groups() -> tuple[str, str]:
    from sam.sam import SAM

    def groups(model: Any) -> list[dict[str, Any]]:
        return [{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()], "rho": 0.5}]

    def mine() -> None:
        model = network()
        optimizer = fw.SharpnessAware(torch.optim.SGD(groups(model), lr=0.1), fw.methods.SAM(RHO), model=model)
        steps(optimizer, model, batches(1))

    theirs = outcome(lambda: SAM(groups(model := network()), momentum_sgd(model.parameters())))
    return theirs, outcome(mine)
