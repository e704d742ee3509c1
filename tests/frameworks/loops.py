"""Plain torch loops that the frameworks must reproduce, on the small network with BatchNorm and dropout.

Frameworks draw random numbers of their own between steps, so every step starts from a seed: its number.
"""

from contextlib import nullcontext

import torch
from methods.cases import CASES, parametrized
from optim.problems import batches, build, flat, halves, loss_of, noisy_net
from torch.utils.data import DataLoader

DATA = batches(6)
EPOCHS = 2
# One pass; two; now and then more, some of them in evaluation mode; a difference of two.
few_methods = parametrized([case for case in CASES if case.name in ("sgd", "sam", "eigen-sam", "gradient-norm")])


def loader(data=DATA):
    """The batches as they are."""
    return DataLoader(data, batch_size=None)


def plain(
    method,
    epochs=EPOCHS,
    data=DATA,
    clip=None,
    clip_value=None,
    autocast=nullcontext,
    scaler=None,
    halved=False,
    **options,
):
    """The setup after training, and the diagnostics of each step."""
    run = build(method, net=noisy_net, **options)
    records = []
    for step, batch in enumerate(data * epochs):
        torch.manual_seed(step)
        for p in run.opt.passes(scaler):
            for part in halves(batch) if halved else [batch]:
                with autocast():
                    loss = loss_of(run.model, part)
                p.backward(loss)
        if scaler is not None:
            scaler.unscale_(run.opt)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(run.params, clip)
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(run.params, clip_value)
        update(run.opt, scaler)
        records.append(run.opt.diagnostics)
    return run, records


def update(optimizer, scaler):
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def distance(model, other):
    """The largest difference between two models' weights and buffers."""
    theirs = [t.double() for t in other.state_dict().values()]
    return float((flat(t.double() for t in model.state_dict().values()) - flat(theirs)).abs().max())
