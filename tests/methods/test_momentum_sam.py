"""Momentum-SAM: around SGD and Adam, resumed, with groups, and with bases that have no momentum."""

import functools

import pytest
import torch
from methods.evidence import STEPS, largest_difference, loss_on
from optim.problems import (
    assert_same,
    batches,
    build,
    count_evaluations,
    every_base,
    flat,
    loss_of,
    mlp,
    norm_net,
    snapshot,
    step_by_closure,
    train,
)
from reference import family_one

import flatwise as fw
from flatwise.methods import SGD, MomentumSAM

RHO = 0.3
ADAMS = {
    "adam": functools.partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2),
    "nadam": functools.partial(torch.optim.NAdam, lr=1e-2),
    "amsgrad": functools.partial(torch.optim.Adam, lr=1e-2, amsgrad=True),
}


@pytest.mark.parametrize("name", ["adamw", "nadam", "amsgrad"])
def test_around_adam_it_goes_against_the_running_mean(name):
    data = batches(STEPS, dtype=torch.float64)
    run = build(MomentumSAM(rho=RHO), ADAMS[name], dtype=torch.float64)
    train(run, data)
    model = mlp(torch.float64)
    params = list(model.parameters())
    losses = [loss_on(model, batch) for batch in data]
    family_one.momentum_sam_with_adam(params, ADAMS[name](params), losses, rho=RHO, beta=0.9)
    assert largest_difference(flat(run.params), flat(params)) < 1e-10


@pytest.mark.parametrize("name", ADAMS)
def test_around_adam_it_is_not_adam(name):
    runs = [build(method, ADAMS[name], dtype=torch.float64) for method in (MomentumSAM(rho=RHO), SGD())]
    for run in runs:
        train(run, batches(10, dtype=torch.float64))
    assert largest_difference(*(flat(run.params) for run in runs)) > 1e-4


@every_base
def test_a_step_takes_one_evaluation_and_the_first_is_the_base_optimizers(base):
    run, plain = build(MomentumSAM(rho=RHO), base), build(SGD(), base)
    first, second = batches(2)
    assert [count_evaluations(run, step_by_closure, first), count_evaluations(plain, step_by_closure, first)] == [1, 1]
    assert torch.equal(flat(run.params), flat(plain.params))
    assert run.opt.diagnostics["displacement_norm"] == 0
    assert count_evaluations(run, step_by_closure, second) == 1
    assert run.opt.diagnostics["displacement_norm"] == pytest.approx(RHO, rel=1e-5)


@every_base
@pytest.mark.parametrize("when", [1, 4])
def test_resuming_in_the_middle_is_bitwise(base, when):
    data = batches(8)
    whole, resumed = build(MomentumSAM(rho=RHO), base), build(MomentumSAM(rho=RHO), base)
    train(whole, data[:when])
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.opt.load_state_dict(whole.opt.state_dict())
    train(whole, data[when:])
    train(resumed, data[when:])
    assert_same(snapshot(resumed), snapshot(whole))


def test_the_loss_is_the_one_where_it_looks():
    run = build(MomentumSAM(rho=RHO), dtype=torch.float64)
    first, second = batches(2, dtype=torch.float64)
    step_by_closure(run, first)
    at_weights = loss_of(run.model, second).item()
    told = step_by_closure(run, second).item()
    assert abs(told - at_weights) > 1e-4
    assert run.opt.diagnostics["loss"] == told


def test_buffers_advance_once_a_step():
    run = build(MomentumSAM(rho=RHO), net=norm_net)
    train(run, batches(5))
    assert run.model[1].num_batches_tracked.item() == 5


def test_the_norm_is_over_the_groups_that_are_displaced():
    groups = lambda model: [
        {"params": list(model[0].parameters()), "rho": 0.0},
        {"params": list(model[2].parameters()), "rho": 0.2},
    ]
    run = build(MomentumSAM(rho=RHO), dtype=torch.float64, groups=groups)
    first, second = batches(2, dtype=torch.float64)
    step_by_closure(run, first)
    before = [p.detach().clone() for p in run.params]
    momentum = [run.base.state[p]["momentum_buffer"].clone() for p in run.params]
    for p in run.opt.passes():
        moved = [p.detach() - w for p, w in zip(run.params, before)]
        p.backward(loss_of(run.model, second))
    assert not any(d.any() for d in moved[:2])
    torch.testing.assert_close(flat(moved[2:]), -0.2 * flat(momentum[2:]) / flat(momentum[2:]).norm())


@pytest.mark.parametrize(
    "base",
    [
        functools.partial(torch.optim.SGD, lr=0.1),
        functools.partial(torch.optim.RMSprop, lr=0.1),
        functools.partial(torch.optim.Adagrad, lr=0.1),
        functools.partial(torch.optim.Adam, lr=0.1, betas=(0.0, 0.999)),
    ],
    ids=["sgd", "rmsprop", "adagrad", "adam with beta1 0"],
)
def test_a_base_without_momentum_is_refused(base):
    with pytest.raises(ValueError, match=r"momentum=0\.9"):
        build(MomentumSAM(), base)


class Elsewhere(torch.optim.SGD):
    """Keeps its momentum under a name of its own."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(p.grad)
                p.data.add_(velocity, alpha=-group["lr"])


def test_momentum_that_is_not_found_is_no_silent_base_optimizer():
    run = build(MomentumSAM(), functools.partial(Elsewhere, lr=0.1, momentum=0.9))
    first, second = batches(2)
    step_by_closure(run, first)
    before = flat(run.params).clone()
    with pytest.raises(RuntimeError, match="another name"):
        step_by_closure(run, second)
    assert torch.equal(flat(run.params), before)


def test_it_works_around_torch_s_other_optimizers_with_momentum():
    for base in (
        functools.partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
        functools.partial(torch.optim.RAdam, lr=1e-3),
        functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    ):
        run = build(MomentumSAM(rho=RHO), base)
        train(run, batches(2))
        assert run.opt.diagnostics["displacement_norm"] == pytest.approx(RHO, rel=1e-5)


def test_a_schedule_reaches_the_radius():
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    halved = lambda step, lr: 0.5
    opt = fw.SharpnessAware(base, MomentumSAM(rho=RHO), model=model, rho_schedule=halved)
    for batch in batches(2):
        for p in opt.passes():
            p.backward(loss_of(model, batch))
        opt.step()
    assert opt.diagnostics["displacement_norm"] == pytest.approx(RHO / 2, rel=1e-5)
