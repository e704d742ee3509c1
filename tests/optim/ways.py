"""How the tests of all methods drive a step: loops that show the losses of samples to methods that choose among them."""

import itertools

import torch
import torch.nn.functional as F
from optim.problems import BASES, mlp

STEPS = 7  # a method with a period of three or four has had its turn twice


def sample_losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def passed(run, batch, scaler=None, **options):
    """The passes of a step, without the step."""
    for p in run.opt.passes(scaler, **options):
        p.backward(p.chosen(sample_losses(run.model, batch)).mean())


def concluded(run, scaler=None):
    """What follows the passes."""
    if scaler is None:
        run.opt.step()
    else:
        scaler.step(run.opt)
        scaler.update()


def step(run, batch, scaler=None, **options):
    passed(run, batch, scaler, **options)
    concluded(run, scaler)


def step_by_closure(run, batch):
    """The same by a closure, which cannot show the losses of samples."""

    def closure():
        loss = sample_losses(run.model, batch).mean()
        loss.backward()
        return loss

    return run.opt.step(closure)


def count_passes(run, batch):
    """How many evaluations a step takes, which is taken."""
    passes = itertools.count()
    for p in run.opt.passes():
        next(passes)
        p.backward(p.chosen(sample_losses(run.model, batch)).mean())
    run.opt.step()
    return next(passes)


def plain_run(base, data, net=mlp):
    """Model and base optimizer after the base's own steps."""
    model = net()
    optimizer = BASES[base](model.parameters())
    for batch in data:
        optimizer.zero_grad()
        sample_losses(model, batch).mean().backward()
        optimizer.step()
    return model, optimizer


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def uncounted(taken):
    """A snapshot without the count of skipped steps, the one thing that a skipped step may change."""
    for entries in taken["optimizer"]["state"].values():
        entries.pop("flatwise.skipped", None)
    return taken


def grads(run):
    return [None if p.grad is None else p.grad.clone() for p in run.params]


def two_groups(rho):
    return lambda model: [{"params": model[0].parameters()}, {"params": model[2].parameters(), "rho": rho}]


def displacements(run, batch):
    """The displacement in each pass that is not at the weights and no probe, flat for each of two layers; the step is taken."""
    start = [p.detach().clone() for p in run.params]
    found = []
    for p in run.opt.passes():
        if not (p.at_weights or p.is_probe):
            moved = [(w.detach() - s).reshape(-1) for w, s in zip(run.params, start)]
            found.append((torch.cat(moved[:2]), torch.cat(moved[2:])))
        p.backward(p.chosen(sample_losses(run.model, batch)).mean())
    run.opt.step()
    return found
