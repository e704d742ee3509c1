"""Small objectives with known derivatives and known equations, in float64."""

import torch
from torch import nn

import flatwise as fw


class Weights(nn.Module):
    """Nothing but weights: the loss is a formula."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def quadratic(start, curvatures, shifts):
    """Batch k has the loss w'A_k w / 2 - c_k'w, with diagonal A_k."""
    data = [
        (torch.tensor(a, dtype=torch.float64), torch.tensor(c, dtype=torch.float64)) for a, c in zip(curvatures, shifts)
    ]
    loss = lambda model, batch: (batch[0] * model.w**2).sum() / 2 - (batch[1] * model.w).sum()
    return fw.Objective(Weights(start), loss, data, weight=lambda batch: 1.0)


def network(middle=nn.Tanh, dtype=torch.float64, mode="current"):
    """A small classifier with six mini-batches of four samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), middle(), nn.Linear(6, 3)).to(dtype)
        inputs, targets = torch.randn(24, 4, dtype=torch.float64).to(dtype), torch.randint(3, (24,))
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    return fw.Objective(model, loss, [(inputs[i::6], targets[i::6]) for i in range(6)], mode=mode)


def slope(sizes, errors):
    """Of the logarithm of the errors over that of the sizes, by least squares."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(errors, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
