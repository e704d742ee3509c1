"""PRGD: the norm that is kept and the norm that leaps, under any base optimizer; margins on separable data."""

import copy
import itertools
import math

import pytest
import torch
from methods.random_losses import evaluate_with
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise import vectors as V
from flatwise.methods import PRGD, SGD, drive

POINTS = torch.tensor([[1.0, 3.0], [1.0, -1.0], [2.0, 0.5]], dtype=torch.float64)
LARGEST = 1.0
"""The largest margin of a direction, which is that of the first axis."""


def exponential(w):
    return torch.exp(-POINTS @ w).mean()


def shortfalls(method, lr, at):
    """How far the margin is from the largest one, after so many steps from an arbitrary start."""
    w = torch.tensor([-0.2, 1.0], dtype=torch.float64)
    state, found = method.init([w]), []
    for step in range(max(at)):
        state.weights, state.step = [w], step
        direction = drive(method, evaluate_with(exponential, w), state)
        w = w + method.update(state, [w], V.scale(direction, -lr))[0]
        if step + 1 in at:
            found.append(LARGEST - ((POINTS @ w).amin() / w.norm()).item())
    return found


def test_margins_grow_exponentially_where_those_of_gradient_descent_grow_logarithmically():
    at = [80, 160, 240, 320]
    progressive = shortfalls(PRGD(every=20, growth=1.5), 0.1, at)
    plain = shortfalls(SGD(), 0.5, at)
    rates = [math.log(a / b) for a, b in itertools.pairwise(progressive)]
    assert all(rate == pytest.approx(4 * math.log(1.5), rel=0.1) for rate in rates)  # as the norm grows
    assert progressive[-1] < 1e-3
    assert plain[-1] > 0.5 * plain[0] > 0.02


@every_base
def test_the_norm_never_grows_but_leaps_by_the_factor(base):
    run = build(PRGD(every=4, growth=1.5), base, dtype=torch.float64)
    norms = [flat(run.params).norm().item()]
    for batch in batches(12, dtype=torch.float64):
        step_by_closure(run, batch)
        norms.append(flat(run.params).norm().item())
    for step, (before, after) in enumerate(itertools.pairwise(norms)):
        if (step + 1) % 4 == 0:
            assert after == pytest.approx(1.5 * before, rel=1e-12)
        else:
            assert after <= before * (1 + 1e-12)


def test_a_leap_keeps_the_direction_bitwise_up_to_rounding():
    run = build(PRGD(every=1, growth=2.0))
    before = flat(run.params)
    step_by_closure(run, batches(1)[0])
    assert torch.equal(flat(run.params), 2 * before)


def test_before_the_start_there_are_no_leaps():
    run = build(
        PRGD(every=2, growth=1.5, start=4), lambda params: torch.optim.SGD(params, lr=0.01), dtype=torch.float64
    )
    leaps = []
    for batch in batches(8, dtype=torch.float64):
        before = flat(run.params).norm()
        step_by_closure(run, batch)
        leaps.append(bool(flat(run.params).norm() > 1.4 * before))
    assert leaps == [False, False, False, False, False, True, False, True]


def test_steps_go_along_the_gradient_of_the_logarithm_of_the_loss():
    w = torch.tensor([0.4, 0.3], dtype=torch.float64)
    method = PRGD()
    state = method.init([w])
    state.weights = [w]
    moving = w.clone().requires_grad_()
    expected = torch.autograd.grad(torch.log(exponential(moving)), moving)[0]
    torch.testing.assert_close(drive(method, evaluate_with(exponential, w), state)[0], expected)


def test_a_loss_of_zero_is_not_a_nan():
    w = torch.tensor([4000.0, 0.0], dtype=torch.float64)
    method = PRGD()
    state = method.init([w])
    state.weights = [w]
    assert torch.equal(drive(method, evaluate_with(exponential, w), state)[0], torch.zeros(2, dtype=torch.float64))


def test_weights_of_zero_stay_finite():
    method, zero = PRGD(), [torch.zeros(3)]
    made = method.update(method.init(zero), zero, [torch.ones(3)])
    assert torch.equal(made[0], torch.zeros(3))


@every_base
def test_a_skipped_step_is_no_step_and_no_leap(base):
    run = build(PRGD(every=2, growth=1.5), base)
    (x, y), good, another = batches(3)
    step_by_closure(run, good)
    before = snapshot(run)
    step_by_passes(run, (x * float("nan"), y))
    assert_same(snapshot(run)["model"], before["model"])
    norm = flat(run.params).norm()
    step_by_closure(run, another)
    torch.testing.assert_close(flat(run.params).norm(), 1.5 * norm)


@every_base
def test_resuming_at_any_step_continues_bitwise(base):
    data = batches(6)
    run = build(PRGD(every=3), base)
    saved = [copy.deepcopy((run.model.state_dict(), run.opt.state_dict()))]
    for batch in data:
        step_by_closure(run, batch)
        saved.append(copy.deepcopy((run.model.state_dict(), run.opt.state_dict())))
    for step, (model, opt) in enumerate(saved):
        again = build(PRGD(every=3), base)
        again.model.load_state_dict(model)
        again.opt.load_state_dict(opt)
        train(again, data[step:])
        assert_same(snapshot(again), snapshot(run), f"resumed after step {step}")


def test_a_step_on_a_gradient_alone_is_refused_since_the_loss_is_not_known():
    run = build(PRGD())
    for p in run.params:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="passes"):
        run.opt.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": 0.9}, "growth must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"start": -1}, "start must not be negative"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PRGD(**options)


def test_a_negative_loss_is_skipped_rather_than_climbed():
    run = build(PRGD())
    before = flat(run.params)
    for p in run.opt.passes():
        p.backward(-1.0 - sum(q.square().sum() for q in run.params))
    run.opt.step()
    assert torch.equal(flat(run.params), before)
    assert run.opt.diagnostics["skipped"] == 1
