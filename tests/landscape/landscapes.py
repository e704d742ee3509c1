"""Losses whose slices are known, and networks of which everything is kept."""

import random

import torch
from test_objective import batches, convolutional, cross_entropy, mlp
from torch import nn

from flatwise import Objective


class Bowl(nn.Module):
    """A quadratic loss around `center`, with weights in two tensors."""

    def __init__(self, matrix, center):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        self.double()
        self.matrix, self.center = matrix, center

    def forward(self):
        w = torch.cat([self.first.reshape(-1), self.second]) - self.center
        return w @ self.matrix @ w / 2


def bowl(seed=0):
    """The objective, its matrix, and its center."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    center = torch.randn(6, generator=generator, dtype=torch.float64)
    matrix = noise @ noise.T
    return Objective(Bowl(matrix, center), lambda model, batch: model(), [torch.zeros(1)]), matrix, center


def as_vector(flat):
    return [flat[:4].reshape(2, 2), flat[4:]]


def network(make=mlp, shape=(5,), mode="eval", seed=0, sizes=(7, 4)):
    """An objective of a small network in float64, on batches of unequal size."""
    torch.manual_seed(seed)
    data = batches(*sizes, shape=shape)
    model = make().double()
    model.train()(data[0][0] + 1)  # running statistics that are not the initial ones
    return Objective(model, cross_entropy, data, mode=mode)


def normalised_network(**options):
    return network(convolutional, (2, 4, 4), **options)


def everything(model):
    """What measuring must leave as it is."""
    state = {name: t.detach().clone() for name, t in model.state_dict().items()}
    flags = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
    return state, flags, [p.grad for p in model.parameters()], torch.get_rng_state(), random.getstate()


def assert_untouched(model, before):
    state, flags, grads, rng, python = everything(model)
    for name, t in before[0].items():
        assert torch.equal(state[name], t), name
    assert (flags, grads, python) == (before[1], before[2], before[4])
    assert torch.equal(rng, before[3])


def loss_with(objective, state):
    """The loss of a checkpoint, loaded as users load it."""
    before = {name: t.clone() for name, t in objective.model.state_dict().items()}
    objective.model.load_state_dict(state)
    try:
        return objective.value().item()
    finally:
        objective.model.load_state_dict(before)
