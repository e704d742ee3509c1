"""The scaler that the passes knew is the one that takes the step; anything else is refused before a weight moves."""

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import assert_same, batches, build, closure_of, loss_of, snapshot, step_by_passes, train
from torch.utils.checkpoint import checkpoint

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


@pytest.mark.parametrize("told", ["opt", "base"])
@pytest.mark.parametrize("every_pass", [False, True])
@every_method
def test_unscaling_within_the_passes_is_refused_and_the_weights_are_back(case, every_pass, told):
    run, known = build(case.method), scaler()
    before = snapshot(run)

    def backward(p, loss):
        p.backward(loss)
        if every_pass or p.at_weights:
            known.unscale_(getattr(run, told))

    with pytest.raises(RuntimeError, match=r"(?s)before its passes were over.*scaler\.update\(\) before"):
        passes(run, known, backward)
    assert_same(snapshot(run), before)
    known.update()
    step_by_passes(run, batches(1)[0], known)
    assert run.opt.diagnostics["skipped"] == 0


@every_method
def test_a_loss_that_was_scaled_by_hand_is_refused(case):
    run, known = build(case.method), scaler()
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"write p\.backward\(loss\), not p\.backward\(scaler\.scale\(loss\)\)"):
        passes(run, known, scaled_by_hand(known))
    assert_same(snapshot(run), before)


def test_a_loss_times_something_else_is_no_scaled_one():
    """A factor, a learned one, one within a checkpoint whose backward must find what it kept, one whose graph is freed."""
    run, known = build(SAM(0.1)), scaler()
    factor = torch.tensor(2.0)
    batch = batches(1)[0]
    for p in run.opt.passes(known):
        p.backward(loss_of(run.model, batch) * factor)
        p.backward(loss_of(run.model, batch) * loss_of(run.model, batch))
        p.backward(checkpoint(lambda: loss_of(run.model, batch) * factor, use_reentrant=False))
    known.step(run.opt)
    known.update()
    freed = loss_of(run.model, batch) * factor
    freed.backward()
    with pytest.raises(RuntimeError, match="backward failed"):
        passes(run, known, lambda p, _: p.backward(freed))


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
