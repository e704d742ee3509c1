"""Layers that take part by chance or by the data: stochastic depth, dropped layers, mixtures of experts."""

import pytest
import torch
from methods.cases import every_displacing_method, every_method, every_transcribed_method
from optim.problems import batches, build, flat, loss_of, seeded, step_by_closure, step_by_passes, train, weights
from reference import transcriptions
from torch import nn
from torchvision.ops import StochasticDepth

every_route = pytest.mark.parametrize("step", [step_by_closure, step_by_passes])


class DroppedLayers(nn.Module):
    """Skips whole layers: what a skipped layer holds gets no gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.taken = []

    def forward(self, x):
        x = torch.tanh(self.first(x))
        self.taken.append([i for i in range(3) if not self.training or torch.rand(()) < 0.5])
        for i in self.taken[-1]:
            x = x + torch.tanh(self.layers[i](x))
        return self.last(x)


class Residual(nn.Module):
    """A branch that torchvision drops, by row or for the whole batch."""

    def __init__(self, mode):
        super().__init__()
        self.inner, self.depth = nn.Linear(8, 8), StochasticDepth(0.5, mode)

    def forward(self, x):
        return x + self.depth(torch.tanh(self.inner(x)))


def residuals(mode):
    return nn.Sequential(nn.Linear(6, 8), Residual(mode), Residual(mode), nn.Linear(8, 3))


class Experts(nn.Module):
    """Every sample goes to the expert that its router prefers, and to no other. `dense` is the same with masks."""

    def __init__(self, dense=False):
        super().__init__()
        self.router, self.experts = nn.Linear(6, 5), nn.ModuleList(nn.Linear(6, 3) for _ in range(5))
        self.register_buffer("load", torch.zeros(5))
        self.dense = dense
        with torch.no_grad():
            self.router.bias[3:] -= 100  # nobody goes there

    def forward(self, x):
        gate, chosen = torch.softmax(self.router(x), 1).max(1)
        if self.training:
            self.load += torch.bincount(chosen, minlength=5)
        out = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if self.dense:
                out = out + expert(x) * (gate * mine)[:, None]
            elif mine.any():
                out[mine] = expert(x[mine]) * gate[mine, None]
        return out


NETS = {
    "dropped layers": DroppedLayers,
    "stochastic depth by row": lambda: residuals("row"),
    "stochastic depth by batch": lambda: residuals("batch"),
    "experts": Experts,
}
every_net = pytest.mark.parametrize("net", NETS)


def made(name):
    return lambda dtype=torch.float32: seeded(NETS[name]).to(dtype)


def plain(params):
    """Without momentum and weight decay a gradient of zero and none at all are the same."""
    return torch.optim.SGD(params, lr=0.1)


def take_reference_step(case, model, base, batch):
    """The paper's rule, every evaluation with the same random numbers, and a zero gradient where there is none."""
    params, state = list(model.parameters()), torch.get_rng_state()

    def loss():
        torch.set_rng_state(state)
        return loss_of(model, batch) + sum(0 * p.square().sum() for p in params)

    transcriptions.take_step(base, params, case.transcription(loss, params))


@every_net
@every_route
@every_transcribed_method
def test_every_evaluation_takes_the_same_way(case, step, net):
    """Against the paper's rule, with the random numbers put back by hand."""
    run, model = build(case.method, plain, made(net), torch.float64), made(net)(torch.float64)
    base = plain(model.parameters())
    data = batches(6, dtype=torch.float64)
    torch.manual_seed(7)
    train(run, data, step)
    torch.manual_seed(7)
    for batch in data:
        take_reference_step(case, model, base, batch)
    torch.testing.assert_close(flat(run.params), flat(model.parameters()), rtol=0, atol=case.double_tolerance)


@every_route
@every_displacing_method
def test_the_same_layers_are_dropped_in_every_pass_in_training_mode(case, step):
    run = build(case.method, net=made("dropped layers"))
    torch.manual_seed(3)
    for batch in batches(6):
        ways, modes = run.model.taken, []
        ways.clear()
        handle = run.model.register_forward_pre_hook(lambda model, _, modes=modes: modes.append(model.training))
        step(run, batch)
        handle.remove()
        training = [way for way, mode in zip(ways, modes, strict=True) if mode]
        assert len(training) > 1
        assert all(way == training[0] for way in training)


@every_route
@every_displacing_method
def test_with_fresh_noise_layers_of_some_passes_only_are_put_back(case, step):
    run = build(case.method, lambda params: torch.optim.SGD(params, lr=0.0), made("dropped layers"), fresh_noise=True)
    before = weights(run)
    torch.manual_seed(3)
    for batch in batches(8):
        step(run, batch)
        assert all(torch.equal(p, old) for p, old in zip(run.params, before))
    assert len({tuple(way) for way in run.model.taken}) > 2


@every_method
def test_a_dropped_layer_rests(case):
    """No gradient, hence no step of the base optimizer, neither its momentum nor its weight decay."""
    run = build(case.method, net=made("dropped layers"))
    torch.manual_seed(5)
    rested = 0
    for batch in batches(8):
        before = weights(run)
        run.model.taken.clear()
        step_by_passes(run, batch)
        in_training = run.model.taken[0]
        for i, layer in enumerate(run.model.layers):
            if i not in in_training:
                rested += 1
                assert layer.weight.grad is None
                assert any(layer.weight.equal(old) for old in before)
    assert rested > 4


@every_route
@every_method
def test_experts_that_nobody_asked_rest_and_the_load_counts_once(case, step):
    run = build(case.method, net=made("experts"))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    for i, batch in enumerate(batches(6)):
        step(run, batch)
        assert run.model.load.sum().item() == 16 * (i + 1)
    for name, p in run.model.named_parameters():
        unasked = name.startswith(("experts.3", "experts.4"))
        assert torch.equal(p, before[name]) == unasked
        assert (p.grad is None) == unasked
    assert torch.isfinite(flat(run.params)).all()


@every_route
@every_transcribed_method
def test_routed_experts_train_like_masked_ones(case, step):
    dense = lambda dtype: seeded(lambda: Experts(dense=True)).to(dtype)
    routed = build(case.method, plain, made("experts"), torch.float64)
    masked = build(case.method, plain, dense, torch.float64)
    data = batches(6, dtype=torch.float64)
    train(routed, data, step)
    train(masked, data, step)
    torch.testing.assert_close(flat(routed.params), flat(masked.params), rtol=0, atol=1e-12)
    assert torch.equal(routed.model.load, masked.model.load)
