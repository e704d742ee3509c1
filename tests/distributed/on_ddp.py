"""Scenarios for two processes under DistributedDataParallel."""

import copy

import torch
from distributed.layouts import (
    EIGEN,
    FEW,
    METHODS,
    SAM,
    data,
    ddp,
    flat,
    network,
    share,
    shares,
    step,
    trained,
    wrapped,
)
from optim.problems import loss_of, norm_net
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import flatwise as fw


class Forked(nn.Module):
    """One layer that no rank uses, and one that only the second uses."""

    def __init__(self):
        super().__init__()
        self.body = network()
        self.idle, self.of_second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        for p in (*self.idle.parameters(), *self.of_second.parameters()):
            nn.init.constant_(p, 0.1)

    def forward(self, x, rank=None):
        found = self.body(x)
        rank = torch.distributed.get_rank() if rank is None else rank
        return found + self.of_second(found) if rank else found


class Holder(nn.Module):
    """A module that contains what is replicated."""

    def __init__(self, replicated):
        super().__init__()
        self.replicated = replicated

    def forward(self, x):
        return self.replicated(x)


class SumOverRanks(torch.autograd.Function):
    """What torch.distributed.all_reduce does, with its derivative."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return SumOverRanks.forward(ctx, gradient)


class SyncNorm(nn.BatchNorm1d):
    """Batch statistics over all ranks: SyncBatchNorm, which torch has for accelerators only, in a few lines."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        count = len(x) * torch.distributed.get_world_size()
        mean = SumOverRanks.apply(x.sum(0)) / count
        variance = SumOverRanks.apply((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


def with_norm():
    return norm_net(torch.float64)


def with_sync_norm():
    model = with_norm()
    norm = SyncNorm(10).double()
    norm.load_state_dict(model[1].state_dict())
    model[1] = norm
    return model


def compiled():
    torch._dynamo.reset()
    return torch.compile(ddp(), backend="aot_eager")


VARIANTS = {
    "bucket views": lambda: ddp(gradient_as_bucket_view=True),
    "static graph": lambda: ddp(static_graph=True, gradient_as_bucket_view=True),
    "unused parameters": lambda: ddp(find_unused_parameters=True),
    "within a module": lambda: Holder(ddp()),
    "compiled": compiled,
    "of a compiled module": lambda: DistributedDataParallel(torch.compile(network(), backend="aot_eager")),
    "statistics over ranks": lambda: ddp(with_sync_norm),
}


def running_statistics(rank):
    """After three steps of learning rate 0: of SAM along the mean, of SAM along each rank's gradient, and plain."""

    def plain(model):
        for batch in batches:
            loss_of(model, batch).backward()

    def sharpness_aware(model, perturb):
        opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.0), SAM, model=model, perturb=perturb)
        for batch in batches:
            step(opt, model, batch)

    batches, models = shares(rank, count=3), [ddp(with_norm) for _ in range(3)]
    sharpness_aware(models[0], "global")
    sharpness_aware(models[1], "local")
    plain(models[2])
    return [{name: b.clone() for name, b in model.named_buffers()} for model in models]


def sharded_state(rank, perturb):
    """A base optimizer each of whose ranks updates a part of the weights."""
    model = ddp()
    base = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2, weight_decay=1e-2)
    opt = fw.SharpnessAware(base, EIGEN, model=model, perturb=perturb)
    for batch in shares(rank, count=FEW):
        step(opt, model, batch)
    return flat(model)


def wrapped_late(rank):
    """The optimizer is made first, as some frameworks do."""
    model = network()
    opt = wrapped(model, EIGEN)
    opt.model = DistributedDataParallel(model)
    for batch in shares(rank, count=FEW):
        step(opt, opt.model, batch)
    return flat(model)


def first_pass(rank):
    """How each rank was displaced, and the weights after the step."""
    found = {}
    for perturb in ("local", "global"):
        model = ddp()
        opt = wrapped(model, SAM, perturb=perturb)
        batch = share(data(1)[0], rank)
        before = flat(model)
        for p in opt.passes():
            if not p.at_weights:
                found[perturb] = flat(model) - before
            p.backward(loss_of(model, batch))
        opt.step()
        found[perturb + " weights"] = flat(model)
    return found


def gradients_under_no_sync(rank):
    """As torch leaves them: with `no_sync` around backward only, and around forward and backward."""
    model, batch = ddp(), share(data(1)[0], rank)
    found = []
    for around_forward in (False, True):
        model.zero_grad()
        with model.no_sync():
            inside = loss_of(model, batch)
        loss = inside if around_forward else loss_of(model, batch)
        with model.no_sync():
            loss.backward()
        found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    return found


def looked_at_after_backward(rank):
    """A forward without gradients after backward: it says nothing about whether backward averaged."""

    def look(opt, model, batch):
        def closure():
            loss = loss_of(model, batch)
            loss.backward()
            with torch.no_grad():
                model(batch[0])
            return loss

        opt.step([closure, closure])

    return trained(ddp(), EIGEN, shares(rank, count=FEW), step=look)


def copied(rank):
    """The weights after a step of the original, and of its deep copy."""
    model, batches = ddp(), shares(rank, count=5)
    opt = wrapped(model, EIGEN)
    for batch in batches[:4]:
        step(opt, model, batch)
    twin, other = copy.deepcopy((model, opt))
    for o, m in ((opt, model), (other, twin)):
        step(o, m, batches[4])
    return flat(model), flat(twin)


SCENARIOS = {
    **{f"ddp {name}": lambda rank, m=m: trained(ddp(), m, shares(rank)) for name, m in METHODS.items()},
    **{
        f"local {name}": lambda rank, m=m: trained(ddp(), m, shares(rank), perturb="local")
        for name, m in METHODS.items()
        if not m.adaptive
    },
    **{
        variant: lambda rank, make=make: trained(make(), EIGEN, shares(rank, count=FEW))
        for variant, make in VARIANTS.items()
    },
    "float32 sam": lambda rank: trained(ddp(lambda: network().float()), SAM, [(x.float(), y) for x, y in shares(rank)]),
    **{
        f"forked {perturb}": lambda rank, perturb=perturb: trained(
            ddp(Forked, find_unused_parameters=True), SAM, shares(rank, count=FEW), perturb=perturb
        )
        for perturb in ("global", "local")
    },
    "running statistics": running_statistics,
    "first pass": first_pass,
    "gradients under no_sync": gradients_under_no_sync,
    "looked at after backward": looked_at_after_backward,
    "copied": copied,
    "wrapped late": wrapped_late,
    **{f"sharded state, {p}": lambda rank, p=p: sharded_state(rank, p) for p in ("global", "local")},
}
