"""Scenarios for two processes whose batches differ in size or in number, or are driven in unlike ways."""

import contextlib
import math

import torch
from distributed.layouts import (
    EIGEN,
    FEW,
    LAYOUTS,
    METHODS,
    SAM,
    data,
    ddp,
    flat,
    share,
    step,
    trained,
    unequal_share,
    wrapped,
)
from optim.problems import loss_of

MORE = 3  # batches of the first rank for which the second has none left


def by_size(opt, model, batch):
    for p in opt.passes():
        p.backward(loss_of(model, batch), weight=len(batch[0]))
    opt.step()


def unequal(rank, make, method, step, **options):
    return trained(make(), method, [unequal_share(batch, rank) for batch in data(FEW)], step=step, **options)


def run_out(rank, make, method, **options):
    """The second rank goes on without data: a batch of others, with weight 0."""
    model = make()
    opt = wrapped(model, method, **options)
    for number, batch in enumerate(data(FEW)):
        has_data = rank == 0 or number < FEW - MORE
        for p in opt.passes():
            p.backward(loss_of(model, share(batch, rank)), weight=float(has_data))
        opt.step()
    return flat(model)


def three_and_one(rank):
    """Micro-batches of four samples: three on the first rank, one on the second."""
    return slice(0, 3) if rank == 0 else slice(3, 4)


def two_each(rank):
    """FSDP2 needs as many on each rank: it gathers the weights in every forward."""
    return slice(2 * rank, 2 * rank + 2)


def quiet(model, more):
    """What users do before the last micro-batch."""
    if hasattr(model, "no_sync"):
        return model.no_sync() if more else contextlib.nullcontext()
    model.set_requires_gradient_sync(not more)
    return contextlib.nullcontext()


def micro_batches(rank, make, drive, pieces):
    """Only the last is synchronised."""
    model = make()
    opt = wrapped(model, SAM)
    for batch in data(FEW):
        own = list(zip(*(t.chunk(4) for t in batch)))[pieces(rank)]
        for p in opt.passes():
            for number, piece in enumerate(own, 1):
                with quiet(model, more=number < len(own)):
                    drive(p, loss_of(model, piece))
        opt.step()
    return flat(model)


def backward(p, loss):
    p.backward(loss)


def record(p, loss):
    loss.backward()
    p.record(loss)


def losses(rank, make):
    """As the step returns them, from parts of unequal size."""
    model = make()
    opt = wrapped(model, SAM)
    found = []
    for batch in data(5):
        by_size(opt, model, unequal_share(batch, rank))
        found.append(opt.diagnostics["loss"])
    return torch.tensor(found)


# --- not finite -------------------------------------------------------------------------------------------------------


def not_finite(rank, make, method, evaluation, **options):
    """On the second rank, in one evaluation of one step; in that of Eigen-SAM its vector is refreshed."""
    model = make()
    opt = wrapped(model, method, **options)
    unmoved = []
    for number, batch in enumerate(data(5)):
        before = flat(model)
        for i, p in enumerate(opt.passes()):
            bad = number == EIGEN.every and rank == 1 and i == evaluation
            p.backward(loss_of(model, share(batch, rank)) * (math.nan if bad else 1.0))
        opt.step()
        unmoved.append(torch.equal(flat(model), before))
    return {"unmoved": unmoved, "weights": flat(model), "skipped": opt.diagnostics["skipped"]}


def evaluations(method, perturb="global"):
    """Those of the step in question. Eigen-SAM's probes come in between: two, and one more where replicas are apart."""
    if method != EIGEN:
        return range(1 if method == METHODS["sgd"] else 2)
    return range(4 if perturb == "global" else 5)


LAYOUTS_AND_METHODS = [
    *((f"ddp {name}", ddp, m, {}) for name, m in METHODS.items()),
    *((f"local {name}", ddp, m, {"perturb": "local"}) for name, m in METHODS.items() if not m.adaptive),
    ("fsdp sam", LAYOUTS["fsdp"], SAM, {}),
    ("fsdp eigen-sam", LAYOUTS["fsdp"], EIGEN, {}),
]

SCENARIOS = {
    **{f"{kind} by size": lambda rank, m=make: unequal(rank, m, SAM, by_size) for kind, make in LAYOUTS.items()},
    **{f"{kind} by rank": lambda rank, m=make: unequal(rank, m, SAM, step) for kind, make in LAYOUTS.items()},
    "local by size": lambda rank: unequal(rank, ddp, EIGEN, by_size, perturb="local"),
    **{f"{kind} run out": lambda rank, m=make: run_out(rank, m, EIGEN) for kind, make in LAYOUTS.items()},
    "local run out": lambda rank: run_out(rank, ddp, EIGEN, perturb="local"),
    **{
        f"{kind} {number.__name__} {drive.__name__}": lambda rank, m=make, d=drive, n=number: micro_batches(
            rank, m, d, n
        )
        for kind, make in LAYOUTS.items()
        for number in ([three_and_one, two_each] if kind == "ddp" else [two_each])
        for drive in (backward, record)
    },
    **{f"{kind} losses": lambda rank, m=make: losses(rank, m) for kind, make in LAYOUTS.items()},
    **{
        f"not finite: {name}, {i}": lambda rank, make=make, m=m, i=i, o=options: not_finite(rank, make, m, i, **o)
        for name, make, m, options in LAYOUTS_AND_METHODS
        for i in evaluations(m, **options)
    },
}
