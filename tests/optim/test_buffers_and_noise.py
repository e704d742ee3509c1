"""BatchNorm, other buffers, modes, dropout and the random state: all as after one plain pass."""

import copy

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    halves,
    loss_of,
    modes,
    noisy_net,
    norm_net,
    seeded,
    step_by_closure,
    step_by_passes,
)
from torch import nn

import flatwise as fw

every_route = pytest.mark.parametrize("step", [step_by_closure, step_by_passes])


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def after_one_plain_pass(model, batch):
    plain = copy.deepcopy(model)
    plain(batch[0])
    return buffers(plain)


@every_route
@every_method
def test_running_statistics_advance_like_in_one_plain_pass(case, step):
    run = build(case.method, net=norm_net)
    for i, batch in enumerate(batches(5)):
        expected = after_one_plain_pass(run.model, batch)
        step(run, batch)
        assert_same(buffers(run.model), expected)
        assert run.model[1].num_batches_tracked.item() == i + 1


@every_method
def test_frozen_batchnorm_stays_frozen(case):
    run = build(case.method, net=norm_net)
    run.model[1].eval()
    flags, before = modes(run.model), buffers(run.model)
    for batch in batches(4):
        step_by_passes(run, batch)
    assert modes(run.model) == flags
    assert_same(buffers(run.model), before)


class Counting(nn.Module):
    """Replaces one buffer by assignment and writes into another one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("written", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.replaced = self.replaced + 1
            self.written.add_(1)
        return x


def counting_net(dtype=torch.float32):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 10), Counting(), nn.Tanh(), nn.Linear(10, 3))).to(dtype)


@every_route
@every_method
def test_a_buffer_that_is_replaced_by_assignment_advances_once(case, step):
    run = build(case.method, net=counting_net)
    for i, batch in enumerate(batches(5)):
        step(run, batch)
        assert buffers(run.model) == {"1.replaced": i + 1, "1.written": i + 1}


class Noise(nn.Module):
    """Remembers the noise it drew and the mode it drew it in."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, x):
        if self.training:
            self.drawn.append(torch.rand(x.shape))
            x = x * (self.drawn[-1] > 0.3)
        return x


def noise_net(dtype=torch.float32):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), Noise(), nn.Linear(10, 3))).to(dtype)


@every_route
@every_displacing_method
def test_later_passes_replay_the_noise_of_the_first(case, step):
    run = build(case.method, net=noise_net)
    for batch in batches(4):
        run.model[2].drawn.clear()
        step(run, batch)
        first, *later = run.model[2].drawn
        assert later
        assert all(torch.equal(noise, first) for noise in later)


@every_displacing_method
def test_fresh_noise_is_fresh(case):
    run = build(case.method, net=noise_net, fresh_noise=True)
    step_by_closure(run, batches(1)[0])
    first, *later = run.model[2].drawn
    assert later
    assert not any(torch.equal(noise, first) for noise in later)


@every_displacing_method
def test_each_micro_batch_has_its_own_noise_and_replays_it(case):
    run = build(case.method, net=noise_net)
    (batch,) = batches(1)
    for p in run.opt.passes():
        for part in halves(batch):
            p.backward(loss_of(run.model, part))
    run.opt.step()
    a, b, *later = run.model[2].drawn
    assert not torch.equal(a, b)
    assert later
    assert all(torch.equal(noise, (a, b)[i % 2]) for i, noise in enumerate(later))


@every_displacing_method
def test_what_the_loop_body_draws_is_replayed_too(case):
    """So that a random augmentation is the same in every pass."""
    run = build(case.method)
    (batch,) = batches(1)
    drawn = []
    for p in run.opt.passes():
        drawn.append(torch.rand(3))
        p.backward(loss_of(run.model, batch))
    run.opt.step()
    assert len(drawn) > 1
    assert all(torch.equal(noise, drawn[0]) for noise in drawn)


@every_route
@every_method
def test_the_random_state_is_as_after_one_plain_pass(case, step):
    run = build(case.method, net=noisy_net)
    for batch in batches(4):
        state = torch.get_rng_state()
        after_one_plain_pass(run.model, batch)
        expected = torch.get_rng_state()
        torch.set_rng_state(state)
        step(run, batch)
        assert torch.equal(torch.get_rng_state(), expected)


@every_route
@every_method
def test_probes_see_evaluation_mode_and_all_flags_are_restored(case, step):
    run = build(case.method, net=noisy_net)
    run.model[3].eval()
    flags = modes(run.model)
    seen = []
    run.model.register_forward_pre_hook(lambda model, _: seen.append(modes(model)))
    for batch in batches(4):
        step(run, batch)
        assert modes(run.model) == flags
    assert set(map(tuple, seen)) <= {tuple(flags), (False,) * len(flags)}
    assert sum(not any(s) for s in seen) == (0 if case.name != "eigen-sam" else 3 + 3)


@every_method
def test_the_loop_knows_which_passes_are_probes(case):
    run = build(case.method, net=noisy_net)
    for batch in batches(4):
        for p in run.opt.passes():
            assert run.model.training != p.is_probe
            p.backward(loss_of(run.model, batch))
        run.opt.step()


@every_method
def test_a_model_in_evaluation_mode_stays_there(case):
    run = build(case.method, net=noisy_net)
    run.model.eval()
    before = buffers(run.model)
    for batch in batches(4):
        step_by_closure(run, batch)
    assert not any(modes(run.model))
    assert_same(buffers(run.model), before)


def test_without_a_model_one_warning_says_what_is_off():
    method = fw.methods.SAM(rho=0.1)
    run, other = build(method), build(method)
    with pytest.warns(UserWarning, match="model") as caught:
        other.opt = fw.SharpnessAware(other.base, method)
    assert len(caught) == 1
    for batch in batches(4):
        step_by_closure(run, batch)
        step_by_closure(other, batch)  # and not once more: warnings are errors here
    assert_same(other.model.state_dict(), run.model.state_dict())
