"""A slow driver of methods, to compare `SharpnessAware` with: nothing of `flatwise.optim`, a copy of everything everywhere.

The network is called as a pure function of its weights and buffers; the base optimizer receives the direction as `.grad`.
"""

import torch
from torch.func import functional_call

from flatwise.methods import Evaluation, drive


def trained(method, model, base, data, loss_of):
    """The weights of `model`, trained in place: one step of `base`, whose groups are in the model's order, for each batch."""
    params = list(model.parameters())
    ratios = rho_ratios(method, base)
    state = method.init([p.detach() for p in params])
    for batch in data:
        show(state, model, base, ratios)
        evaluate = Evaluations(model, lambda output, batch=batch: loss_of(output, batch), batch, ratios)
        direction = drive(method, evaluate, state)
        for p, d in zip(params, direction):
            p.grad = d
        step(method, params, base, state)
        state.step += 1
        evaluate.conclude()
    return torch.cat([p.detach().reshape(-1) for p in params])


def rho_ratios(method, base):
    """For each parameter the rho of its group, as a multiple of the method's."""
    rho = getattr(method, "rho", None)
    return [group.get("rho", rho) / rho if rho else 1.0 for group in base.param_groups for _ in group["params"]]


def show(state, model, base, ratios):
    """What a method may look at."""
    named = dict(model.named_parameters())
    kept = [base.state.get(p, {}) for p in named.values()]
    state.weights = [p.detach() for p in named.values()]
    state.names = list(named)
    state.momentum = [entry.get("momentum_buffer", entry.get("exp_avg")) for entry in kept]
    state.perturbed = [ratio > 0 for ratio in ratios]


def step(method, params, base, state):
    """The base optimizer's, and what the method makes of it."""
    before = [p.detach().clone() for p in params]
    base.step()
    if not method.changes_update:
        return
    change = method.update(state, before, [p.detach() - b for p, b in zip(params, before)])
    with torch.no_grad():
        for p, b, c in zip(params, before, change):
            p.copy_(b + c)


def displacement(at, ratios):
    """Where a request leads, for each parameter; None where it does not move."""
    if at.vector is None:
        return [None] * len(ratios)
    factors = ratios if at.by_group else [1.0] * len(ratios)
    vector = [v if f else None for v, f in zip(at.vector, factors)]
    norm = torch.stack([v.square().sum() for v in vector if v is not None]).sum().sqrt() if at.normalised else 1.0
    return [None if v is None else at.length * f * v / norm for v, f in zip(vector, factors)]


class Evaluations:
    """Answers the requests of one step. Every one sees the random numbers of the first; one of them advances the buffers."""

    def __init__(self, model, loss, batch, ratios):
        self.model, self.loss, self.batch, self.ratios = model, loss, batch, ratios
        self.random_before = torch.get_rng_state()
        self.random_after = None
        self.buffers = None
        self.were_at_weights = False

    def __call__(self, at):
        torch.set_rng_state(self.random_before)
        weights = {
            name: (p.detach() if d is None else p.detach() + d).requires_grad_()
            for (name, p), d in zip(self.model.named_parameters(), displacement(at, self.ratios))
        }
        supersedes = at.vector is None and not at.probe and not self.were_at_weights
        known = dict(self.model.named_buffers()) if supersedes or self.buffers is None else self.buffers
        buffers = {name: b.clone() for name, b in known.items()}
        loss = self.loss(self.forward(weights, buffers, at.probe))
        gradient = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        drawn = not torch.equal(torch.get_rng_state(), self.random_before)
        if self.random_after is None:
            self.random_after = torch.get_rng_state()
        if supersedes or (self.buffers is None and not at.probe):
            self.buffers, self.were_at_weights = buffers, at.vector is None
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
