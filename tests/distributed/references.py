"""What several processes should find, computed in one, without the optimizer."""

from functools import cache

import torch
from distributed.layouts import METHODS, data, network, share
from optim.problems import BASES, loss_of
from reference import driver
from torch.func import functional_call

from flatwise.methods import Evaluation, drive


def loss_on(output, batch):
    return torch.nn.functional.cross_entropy(output, batch[1])


@cache
def alone(name, steps, base="sgd", net=network):
    """All samples in one process."""
    return alone_on(name, data(steps), base, net)


def alone_on(name, batches, base="sgd", net=network, loss=loss_on):
    model = net()
    return driver.trained(METHODS[name], model, BASES[base](model.parameters()), batches, loss)


def mean_of_means(name, steps, cut):
    """Every part of a batch counts alike, whatever its size: `cut(batch)` gives the parts."""

    def loss(output, batch):
        parts = cut((output, batch[1]))
        return sum(loss_on(o, (None, y)) for o, y in parts) / len(parts)

    return alone_on(name, data(steps), loss=loss)


def shared_out(steps, of=2):
    """For `apart`: batches in equal parts."""
    return [(batch, [(share(batch, part, of), 1 / of) for part in range(of)]) for batch in data(steps)]


def apart(name, batches, base="sgd"):
    """A dialogue for each part of a batch, the directions averaged; what is measured is measured on the whole.

    `batches` holds a pair for each step: the whole batch, and the parts, each with the factor by which it counts.
    """
    method, model = METHODS[name], network()
    params = list(model.parameters())
    optimizer = BASES[base](params)
    states = [method.init([p.detach() for p in params]) for _ in batches[0][1]]
    for whole, parts in batches:
        weighted = []
        for state, (own, factor) in zip(states, parts):
            state.weights = [p.detach().clone() for p in params]
            weighted.append([factor * d for d in drive(method, _evaluations(model, own, whole), state)])
            state.step += 1
        for p, *directions in zip(params, *weighted):
            p.grad = sum(directions)
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in params])


def _evaluations(model, own, whole):
    def evaluate(at):
        moved = at.displacement() or [torch.zeros_like(p) for p in model.parameters()]
        there = [(p.detach() + d).requires_grad_() for p, d in zip(model.parameters(), moved)]
        weights = dict(zip(dict(model.named_parameters()), there))
        loss = loss_of(lambda x: functional_call(model, weights, (x,)), whole if at.probe else own)
        return Evaluation(loss.detach(), list(torch.autograd.grad(loss, there)), repeatable=False)

    return evaluate
