"""What each of two gloo processes trains on the update in the top eigenspace. A module of its own, for started processes."""

from distributed.layouts import LAYOUTS, data, flat, shares, step, wrapped
from optim.problems import loss_of

import flatwise as fw
from flatwise.curvature import eigenspace
from flatwise.methods import SGD, Bulk

STEPS = 2


def trained(model, batches, tol=1e-5):
    """The weights after some steps off the top two eigenvectors of the loss of all batches of all processes."""
    space = eigenspace(fw.Objective(model, loss_of, batches), tol)
    opt = wrapped(model, Bulk(SGD(), k=2, subspace=space))
    for batch in batches:
        step(opt, model, batch)
    return flat(model)


def alone(net):
    return trained(net(), data(STEPS))


SCENARIOS = {name: lambda rank, make=make: trained(make(), shares(rank, count=STEPS)) for name, make in LAYOUTS.items()}
