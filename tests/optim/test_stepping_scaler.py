"""The scaler that the passes knew is the one that takes the step; anything else is refused before a weight moves."""

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import assert_same, batches, build, closure_of, loss_of, snapshot, step_by_passes, train

from flatwise.methods import SAM, SGD


def scaler(**settings):
    return torch.amp.GradScaler("cpu", init_scale=2.0**8, **settings)


def passes(run, known, backward):
    for p in run.opt.passes(known):
        backward(p, loss_of(run.model, batches(1)[0]))


def scaled_by_hand(known):
    def backward(p, loss):
        p.backward(known.scale(loss))

    return backward


@every_method
def test_a_scaler_that_the_passes_did_not_know(case):
    run, known = build(case.method), scaler()
    passes(run, None, scaled_by_hand(known))
    before = snapshot(run)
    with pytest.raises(RuntimeError, match="its passes did not know it"):
        known.step(run.opt)
    assert_same(snapshot(run), before)


@every_method
def test_a_step_that_leaves_the_scaler_out(case):
    run, known = build(case.method), scaler()
    passes(run, known, lambda p, loss: p.backward(loss))
    before = snapshot(run)
    with pytest.raises(RuntimeError, match="step\\(\\) did not come from it"):
        run.opt.step()
    assert_same(snapshot(run), before)


@every_displacing_method
def test_a_scaler_without_passes_is_told_the_loop_with_one(case):
    run, known = build(case.method), scaler()
    known.scale(loss_of(run.model, batches(1)[0])).backward()
    with pytest.raises(RuntimeError, match=r"(?s)Every pass has to know the scaler.*passes\(scaler\)"):
        known.step(run.opt)


def test_one_evaluation_needs_no_passes_with_a_scaler_either():
    run, plain, known = build(SGD()), build(SGD()), scaler()
    batch = batches(1)[0]
    known.scale(loss_of(run.model, batch)).backward()
    known.step(run.opt)
    step_by_passes(plain, batch)
    assert_same(snapshot(run)["model"], snapshot(plain)["model"])


@every_method
def test_a_scaler_that_is_switched_off_is_none(case):
    by_closure, by_passes, plain = build(case.method), build(case.method), build(case.method)
    off = scaler(enabled=False)
    for batch in batches(3):
        off.step(by_closure.opt, closure_of(by_closure, batch))
        step_by_passes(by_passes, batch, off)
    train(plain, batches(3))
    assert_same(snapshot(by_closure), snapshot(plain))
    assert_same(snapshot(by_passes), snapshot(plain))


def test_a_backward_that_the_pass_was_not_told_of():
    run = build(SAM(0.1))
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"p\.record\(loss\)"):
        passes(run, None, lambda p, loss: loss.backward())
    run.opt.zero_grad()
    assert_same(snapshot(run), before)


def test_a_base_that_differentiates_twice_is_refused():
    class Newton(torch.optim.SGD):
        is_second_order = True

    with pytest.raises(ValueError, match="Newton differentiates gradients again"):
        build(SAM(0.1), base=lambda parameters: Newton(parameters, lr=0.1))
