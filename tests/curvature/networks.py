"""Small networks with every layer that makes trouble, and their Hessians by brute force in float64."""

import functools

import torch
from test_objective import Tied, batches, loss_of_flat_weights
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recurrent(nn.Module):
    def __init__(self, layer=nn.LSTM):
        super().__init__()
        self.layer, self.last = layer(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    """In evaluation mode its layer has a fast path without derivatives."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.2, activation="gelu", batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layer(x).mean(1))


class Checkpointed(nn.Module):
    """Its middle is recomputed in the backward pass; `reentrant` None: not."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x, block = torch.tanh(self.first(x)), lambda t: torch.tanh(self.middle(t))
        return self.last(block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant))


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def convolutional():
    conv = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.GELU()
    return nn.Sequential(*conv, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3))


NETWORKS = {
    "mlp": (mlp, (5,), "current"),
    "tied weights and an unused parameter": (Tied, (5,), "current"),
    "BatchNorm, training mode": (convolutional, (2, 4, 4), "train"),
    "BatchNorm, evaluation mode": (convolutional, (2, 4, 4), "eval"),
    "LSTM": (Recurrent, (4, 2), "current"),
    "GRU": (lambda: Recurrent(nn.GRU), (4, 2), "current"),
    "multi-head attention": (MultiHead, (3, 4), "current"),
    "transformer layer": (Transformer, (3, 4), "eval"),
    "checkpointed block": (lambda: Checkpointed(False), (5,), "current"),
    "reentrant checkpointed block": (lambda: Checkpointed(True), (5,), "current"),
}


def problem(name, dtype=torch.float64):
    """A network, two unequal batches, and the mode."""
    make, shape, mode = NETWORKS[name]
    torch.manual_seed(1)
    model = make().double()
    data = batches(7, 4, shape=shape)
    model.train()(data[0][0])  # running statistics that are not the initial ones
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # some curvature
    return model.to(dtype), [(x.to(dtype), y) for x, y in data], mode


@functools.cache
def brute_force(name):
    """The Hessian over the flat weights, in float64."""
    model, data, mode = problem(name)
    if isinstance(model, Checkpointed):
        model.reentrant = None
    return loss_of_flat_weights(model, data, mode)[2]
