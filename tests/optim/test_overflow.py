"""A non-finite evaluation, in every pass of every step: nothing changes, the step is skipped and counted."""

import itertools
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from methods.cases import every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    loss_of,
    norm_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise import methods
from flatwise import vectors as V


def overflowing_loss(run, batch, now):
    return loss_of(run.model, batch) * (math.inf if now else 1.0)


def closure_step(run, batch, at, scaler):
    """A step whose evaluation number `at` overflows; whether it did."""
    calls = itertools.count()
    hit = []

    def closure():
        hit.append(next(calls) == at)
        loss = overflowing_loss(run, batch, hit[-1])
        loss.backward()
        return loss

    run.opt.step(closure)
    if any(hit):
        assert all(p.grad is None for p in run.params)
    return any(hit)


def passes_step(run, batch, at, scaler):
    hit = []
    for p in run.opt.passes():
        hit.append(len(hit) == at)
        p.backward(overflowing_loss(run, batch, hit[-1]))
    if any(hit):
        assert all(p.grad is None for p in run.params)
    run.opt.step()
    return any(hit)


def scaled_step(run, batch, at, scaler):
    hit = []
    for p in run.opt.passes(scaler):
        hit.append(len(hit) == at)
        p.backward(overflowing_loss(run, batch, hit[-1]))
    if any(hit):
        assert not any(torch.isfinite(p.grad).all() for p in run.params)
    scale = scaler.get_scale()
    scaler.step(run.opt)
    scaler.update()
    assert scaler.get_scale() == (scale / 2 if any(hit) else scale)
    return any(hit)


def unscaled_step(run, batch, at, scaler):
    """With unscale_ and clipping, as most loops have it."""
    hit = []
    for p in run.opt.passes(scaler):
        hit.append(len(hit) == at)
        p.backward(overflowing_loss(run, batch, hit[-1]))
    scale = scaler.get_scale()
    scaler.unscale_(run.opt)
    torch.nn.utils.clip_grad_norm_(run.params, 1e6)
    scaler.step(run.opt)
    scaler.update()
    assert scaler.get_scale() == (scale / 2 if any(hit) else scale)
    return any(hit)


every_route = pytest.mark.parametrize("step", [closure_step, passes_step, scaled_step, unscaled_step])


def without_counts(taken):
    """A snapshot without our count of skipped steps, the one thing that a skipped step may change."""
    for entries in taken["optimizer"]["state"].values():
        entries.pop("flatwise.skipped", None)
    return taken


@every_route
@every_base
@every_method
def test_an_overflow_in_any_pass_skips_the_step_and_changes_nothing_else(case, base, step):
    run, twin = build(case.method, base, norm_net), build(case.method, base, norm_net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    skipped = 0
    for batch in batches(4):
        for at in itertools.count():
            before = without_counts(snapshot(run))
            if not step(run, batch, at, scaler):
                break
            skipped += 1
            assert_same(without_counts(snapshot(run)), before)
            assert run.opt.diagnostics["skipped"] == skipped
        step_by_passes(twin, batch)
        assert_same(without_counts(snapshot(run)), without_counts(snapshot(twin)))
    assert skipped >= 4


@every_method
def test_one_bad_batch_is_as_if_it_had_not_been_there(case):
    good = batches(8)
    bad = (torch.full_like(good[0][0], math.nan), good[0][1])
    with_bad, without = build(case.method, net=norm_net), build(case.method, net=norm_net)
    train(with_bad, good[:3] + [bad] + good[3:])
    train(without, good)
    assert_same(without_counts(snapshot(with_bad)), without_counts(snapshot(without)))
    assert with_bad.opt.diagnostics["skipped"] == 1
    assert without.opt.diagnostics["skipped"] == 0


@every_method
def test_an_infinite_gradient_under_a_finite_loss_is_noticed(case):
    run = build(case.method)
    (batch,) = batches(1)
    before = flat(run.params)

    def closure():
        loss = loss_of(run.model, batch)
        loss.backward()
        run.params[0].grad[0, 0] = math.inf
        return loss

    run.opt.step(closure)
    assert torch.equal(flat(run.params), before)
    assert run.opt.diagnostics["skipped"] == 1


@every_method
def test_the_loss_of_a_skipped_step_is_returned_all_the_same(case):
    run = build(case.method)
    ((x, y),) = batches(1)
    assert math.isnan(float(step_by_closure(run, (x * math.nan, y))))


@every_method
def test_one_bad_micro_batch_spoils_the_step(case):
    run = build(case.method)
    good, (x, y) = batches(2)
    before = flat(run.params)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, good))
        p.backward(loss_of(run.model, (x * math.inf, y)))
    run.opt.step()
    assert torch.equal(flat(run.params), before)
    assert run.opt.diagnostics["skipped"] == 1


@every_method
def test_after_a_skip_the_pattern_of_the_loop_is_unchanged(case):
    """step() after the skipped passes is legal once, like after good ones."""
    run = build(case.method)
    ((x, y),) = batches(1)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, (x * math.nan, y)))
    run.opt.step()
    if case.name != "sgd":
        with pytest.raises(RuntimeError):
            run.opt.step()


@dataclass(frozen=True)
class Exploding(methods.Dialogue):
    """Finite gradients, and at every second step a direction that is not."""

    def passes(self, state):
        here = yield methods.At.weights()
        there = yield methods.At.along(here.release(), 0.1)
        direction = there.release()
        V.scale_(direction, math.inf if state.numbers.get("odd") else 1.0)
        return direction

    def init(self, vectors):
        return methods.State(numbers={"odd": 0.0})


def test_a_direction_that_is_not_finite_is_not_stepped_along():
    run = build(Exploding(), "sgd")
    train(run, batches(3), step_by_passes)
    run.opt._remembered().numbers["odd"] = 1.0
    before = snapshot(run)
    step_by_passes(run, batches(1)[0])
    after = snapshot(run)
    assert_same({key: after[key] for key in ("model", "base")}, {key: before[key] for key in ("model", "base")})
    assert run.opt.diagnostics["skipped"] == 1


def let_momentum_overflow(run):
    for p in run.params:
        run.base.state[p]["momentum_buffer"].fill_(math.inf)


def test_a_displacement_that_is_not_finite_skips_the_step_though_every_gradient_is():
    """The weights stay where they are, so the evaluation there is a good one: but not the one that was asked for."""
    run = build(methods.MomentumSAM(rho=0.1))
    train(run, batches(2))
    let_momentum_overflow(run)
    before, seen = flat(run.params), []
    for p in run.opt.passes():
        seen.append(flat(run.params))
        p.backward(loss_of(run.model, batches(1)[0]))
    run.opt.step()
    assert all(torch.equal(weights, before) for weights in [*seen, flat(run.params)])
    assert run.opt.diagnostics["skipped"] == 1


def skipped_by_closure(run, batch):
    run.opt.step(lambda: with_backward(overflowing_loss(run, batch, True)))


def skipped_by_passes(run, batch):
    for p in run.opt.passes():
        p.backward(overflowing_loss(run, batch, True))
    run.opt.step()


def skipped_without_passes(run, batch):
    with_backward(overflowing_loss(run, batch, True))
    run.opt.step()


def with_backward(loss):
    loss.backward()
    return loss


def warned_of(steps):
    """From which files, and of what, with every warning shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps()
    return [(w.filename, str(w.message).split(" because ")[0]) for w in caught]


@pytest.mark.parametrize("step", [skipped_by_closure, skipped_by_passes, skipped_without_passes])
def test_ten_skipped_steps_in_a_row_are_told_once_where_the_user_stepped(step):
    run, (batch,) = build(methods.SGD()), batches(1)
    torch.optim.lr_scheduler.StepLR(run.opt, 100)  # it wraps `step`
    told = [(__file__, "10 steps in a row were skipped")]
    assert warned_of(lambda: train(run, [batch] * 9, step)) == []
    assert warned_of(lambda: train(run, [batch] * 40, step)) == told
    assert warned_of(lambda: train(run, [batch] * 2)) == []
    assert warned_of(lambda: train(run, [batch] * 9, step)) == []
    run.opt.load_state_dict(run.opt.state_dict())  # from here on it is another row
    assert warned_of(lambda: train(run, [batch] * 9, step)) == []
    assert warned_of(lambda: train(run, [batch], step)) == told


def test_a_scaler_that_searches_for_its_scale_is_not_told_of_its_skips():
    run, (batch,) = build(methods.SAM(rho=0.1)), batches(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert warned_of(lambda: [scaled_step(run, batch, 0, scaler) for _ in range(12)]) == []
