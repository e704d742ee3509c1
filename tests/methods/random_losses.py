"""Directions of methods with random points: their mean over many steps on one loss, and its standard error."""

import torch

from flatwise.methods import Evaluation, drive


def evaluate_with(loss, w):
    """Answers requests by autograd; `loss` is a function of one tensor."""

    def evaluate(at):
        displacement = at.displacement()
        x = (w if displacement is None else w + displacement[0]).detach().requires_grad_()
        value = loss(x)
        return Evaluation(value.detach(), [torch.autograd.grad(value, x)[0]])

    return evaluate


def mean_direction(method, loss, w, steps):
    """The mean of the directions at `w`, each with the random numbers of another step, and the standard error of each entry."""
    state = method.init([w])
    state.weights = [w]
    found = []
    for step in range(steps):
        state.step = step
        found.append(drive(method, evaluate_with(loss, w), state)[0])
    directions = torch.stack(found)
    return directions.mean(dim=0), directions.std(dim=0) / steps**0.5
