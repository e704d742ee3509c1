"""Networks of some hundred weights, at initialisation and trained, whose Hessians torch computes whole in float64.

A new network joins every test of accuracy by one line of the table.
"""

import copy
import functools
from dataclasses import dataclass

import torch
from curvature.networks import MultiHead, Recurrent, convolutional
from test_objective import Attention, Tied, batches, cross_entropy, frozen_mlp, loss_of_flat_weights
from torch import nn

from flatwise import Objective

SIZES = (11, 6, 3)
"""Samples of the batches: unequal, so that a mean over batches is not the mean over samples."""


class Encoder(nn.Module):
    """With a dropout that evaluation mode switches off."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.2, activation="gelu", batch_first=True)
        self.encoder, self.last = nn.TransformerEncoder(layer, 1, nn.LayerNorm(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.encoder(x).mean(1))


def deep_mlp():
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3))


def normalised():
    conv = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU()
    return nn.Sequential(*conv, nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3))


NETWORKS = {
    "mlp": (deep_mlp, (5,), "current"),
    "cnn, BatchNorm in evaluation mode": (convolutional, (2, 4, 4), "eval"),
    "cnn, BatchNorm in training mode": (convolutional, (2, 4, 4), "train"),
    "cnn, GroupNorm and LayerNorm": (normalised, (2, 4, 4), "current"),
    "LSTM": (Recurrent, (4, 2), "current"),
    "scaled dot product attention": (Attention, (3, 4), "current"),
    "multi-head attention": (MultiHead, (3, 4), "current"),
    "transformer encoder": (Encoder, (3, 4), "eval"),
    "tied weights and an unused parameter": (Tied, (5,), "current"),
    "frozen parameters": (frozen_mlp, (5,), "current"),
}
STATES = ("initial", "trained")


@dataclass(frozen=True, eq=False)
class Problem:
    """A network with its data and mode, and the eigenvalues (ascending) and eigenvectors (columns) of its Hessian, float64."""

    model: nn.Module
    data: list
    mode: str
    matrix: torch.Tensor
    values: torch.Tensor
    vectors: torch.Tensor

    def objective(self, dtype=torch.float32):
        """The loss as it is measured."""
        data = [(x.to(dtype), y) for x, y in self.data]
        return Objective(copy.deepcopy(self.model).to(dtype), cross_entropy, data, mode=self.mode)

    def residual(self, value, vector):
        """How far a pair is from being one, by the exact matrix."""
        return (self.matrix @ vector - value * vector).norm().item()

    def outside(self, vector, value, width):
        """The norm of what of a vector is outside of the eigenvectors whose eigenvalues are at most `width` away."""
        near = self.vectors[:, (self.values - value).abs() <= width]
        return (vector - near @ (near.T @ vector)).norm().item()

    @property
    def scale(self):
        """The largest absolute eigenvalue."""
        return self.values.abs().max().item()


@functools.cache
def problem(name, state):
    make, shape, mode = NETWORKS[name]
    torch.manual_seed(3)
    model = make()
    data = [(x.float().double(), y) for x, y in batches(*SIZES, shape=shape)]
    model.double().train()(data[0][0])  # running statistics that are not the initial ones
    if state == "trained":
        train(model, data, steps=60)
    model.float().double()  # weights that float32 holds exactly: what is compared is the arithmetic
    matrix = loss_of_flat_weights(model, data, mode)[2]
    return Problem(model, data, mode, matrix, *torch.linalg.eigh(matrix))


def train(model, data, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, data[step % len(data)]).backward()
        optimizer.step()
