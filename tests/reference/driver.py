"""A slow driver of methods, to compare `SharpnessAware` with: nothing of `flatwise.optim`, a copy of everything everywhere.

The network is called as a pure function of its weights and buffers; the base optimizer receives the direction as `.grad`.
"""

import torch
from torch.func import functional_call

from flatwise.methods import Evaluation, drive


def trained(method, model, base, data, loss_of):
    """The weights of `model`, trained in place: one step of `base` for each batch."""
    params = list(model.parameters())
    state = method.init([p.detach() for p in params])
    for batch in data:
        state.weights = [p.detach() for p in params]
        evaluate = Evaluations(model, lambda output, batch=batch: loss_of(output, batch), batch)
        direction = drive(method, evaluate, state)
        for p, d in zip(params, direction):
            p.grad = d
        base.step()
        state.step += 1
        evaluate.conclude()
    return torch.cat([p.detach().reshape(-1) for p in params])


class Evaluations:
    """Answers the requests of one step. Every one sees the random numbers of the first; one of them advances the buffers."""

    def __init__(self, model, loss, batch):
        self.model, self.loss, self.batch = model, loss, batch
        self.random_before = torch.get_rng_state()
        self.random_after = None
        self.buffers = None

    def __call__(self, at):
        torch.set_rng_state(self.random_before)
        moved = at.displacement() or [None] * len(list(self.model.parameters()))
        weights = {
            name: (p.detach() if d is None else p.detach() + d).requires_grad_()
            for (name, p), d in zip(self.model.named_parameters(), moved)
        }
        known = self.buffers or dict(self.model.named_buffers())
        buffers = {name: b.clone() for name, b in known.items()}
        loss = self.loss(self.forward(weights, buffers, at.probe))
        gradient = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        drawn = not torch.equal(torch.get_rng_state(), self.random_before)
        if self.random_after is None:
            self.random_after = torch.get_rng_state()
        if not at.probe and self.buffers is None:
            self.buffers = buffers
        return Evaluation(loss.detach(), list(gradient), not drawn)

    def forward(self, weights, buffers, probe):
        was_training = self.model.training
        self.model.train(was_training and not probe)
        output = functional_call(self.model, (weights, buffers), (self.batch[0],))
        self.model.train(was_training)
        return output

    def conclude(self):
        torch.set_rng_state(self.random_after)
        with torch.no_grad():
            for name, b in self.model.named_buffers():
                b.copy_(self.buffers[name])
