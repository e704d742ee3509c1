"""Scenarios for two processes that do what cannot work. Each ends with a proper step: nobody waits, and nothing has moved."""

import torch
from distributed.layouts import SAM, data, ddp, flat, fsdp, network, share, step, unequal_share, wrapped
from distributed.processes import refusal
from optim.problems import loss_of
from torch.distributed.fsdp import FullyShardedDataParallel


def driven(rank, drive, make=ddp):
    """The sentence that `drive(opt, model, batch, rank)` is answered with, whether it moved the weights, and a step after it."""
    model = make()
    opt = wrapped(model, SAM)
    before, (batch,) = flat(model), data(1)
    sentence = refusal(lambda: drive(opt, model, batch, rank))
    unmoved = torch.equal(flat(model), before)
    step(opt, model, share(batch, rank))
    return {"sentence": sentence, "unmoved": unmoved, "weights": flat(model)}


def recorded_unequally(opt, model, batch, rank):
    own = unequal_share(batch, rank)
    for p in opt.passes():
        for _ in range(2):
            loss = loss_of(model, own)
            loss.backward()
            p.record(loss, weight=len(own[0]))
    opt.step()


def never_synchronised(opt, model, batch, rank):
    for p in opt.passes():
        with model.no_sync():
            p.backward(loss_of(model, share(batch, rank)))


def closures_without_synchronisation(opt, model, batch, rank):
    def closure():
        with model.no_sync():
            loss = loss_of(model, share(batch, rank))
            loss.backward()
        return loss

    opt.step([closure, closure])


def interrupted(opt, model, batch, rank):
    for p in opt.passes():
        if not p.at_weights:
            raise ValueError("interrupted")
        p.backward(loss_of(model, share(batch, rank)))


def joined(rank):
    """In the context in which torch lets ranks run out of data. An exception leaves it switched on, so no step follows."""
    model = ddp()
    opt = wrapped(model, SAM)
    before = flat(model)

    def train():
        with model.join():
            step(opt, model, share(data(1)[0], rank))

    return {"sentence": refusal(train), "unmoved": torch.equal(flat(model), before)}


def never_synchronised_by_fsdp(rank):
    """FSDP2 keeps the gradient to itself; none of it is left for a step after this."""
    model = fsdp()
    opt = wrapped(model, SAM)
    model.set_requires_gradient_sync(False)

    def train():
        for p in opt.passes():
            loss = loss_of(model, share(data(1)[0], rank))
            loss.backward()
            p.record(loss)

    return refusal(train)


def static_graph_accumulated(rank):
    """Under no_sync before it ever synchronised."""
    model = ddp(static_graph=True)
    opt = wrapped(model, SAM)

    def accumulate():
        for p in opt.passes():
            with model.no_sync():
                p.backward(loss_of(model, share(data(1)[0], rank)))

    return refusal(accumulate)


def flattened():
    return FullyShardedDataParallel(network(), device_id=torch.device("cpu"))


DRIVEN = {
    "recorded unequally": recorded_unequally,
    "never synchronised": never_synchronised,
    "closures without synchronisation": closures_without_synchronisation,
    "interrupted": interrupted,
}

SCENARIOS = {
    **{f"ddp {name}": lambda rank, drive=drive: driven(rank, drive) for name, drive in DRIVEN.items()},
    "fsdp interrupted": lambda rank: driven(rank, interrupted, fsdp),
    "fsdp recorded unequally": lambda rank: driven(rank, recorded_unequally, fsdp),
    "joined": joined,
    "fsdp never synchronised": never_synchronised_by_fsdp,
    "static graph, locally": lambda rank: refusal(lambda: wrapped(ddp(static_graph=True), SAM, perturb="local")),
    "static graph, accumulated": static_graph_accumulated,
    "fsdp, locally": lambda rank: refusal(lambda: wrapped(fsdp(), SAM, perturb="local")),
    "a bare module, locally": lambda rank: refusal(lambda: wrapped(network(), SAM, perturb="local")),
    "flattened": lambda rank: refusal(lambda: wrapped(flattened(), SAM)),
}
