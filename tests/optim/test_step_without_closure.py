"""opt.step() without closure: legal after finished passes, for one-evaluation methods, with every lr zero; else refused."""

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import (
    BASES,
    assert_same,
    batches,
    build,
    closure_of,
    every_base,
    flat,
    loss_of,
    mlp,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise import methods


def pass_through(run, batch):
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))


@every_displacing_method
def test_after_finished_passes_it_is_the_bases_step_once(case):
    run = build(case.method)
    (batch,) = batches(1)
    before = flat(run.params)
    pass_through(run, batch)
    run.opt.step()
    after = flat(run.params)
    assert not torch.equal(after, before)
    with pytest.raises(RuntimeError):
        run.opt.step()
    assert torch.equal(flat(run.params), after)


@every_base
def test_for_a_method_of_one_evaluation_it_is_the_bases_step_on_grad(base):
    run, model = build(methods.SGD(), base), mlp()
    plain = BASES[base](model.parameters())
    for batch in batches(5):
        for net, optimizer in ((run.model, run.opt), (model, plain)):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()
    assert_same(run.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("fresh_gradients", [False, True])
@every_displacing_method
def test_anything_else_is_refused_and_both_loops_are_shown(case, fresh_gradients):
    run = build(case.method)
    train(run, batches(2))
    run.opt.zero_grad()
    if fresh_gradients:
        loss_of(run.model, batches(1)[0]).backward()
    before = snapshot(run)
    with pytest.raises(RuntimeError, match="closure") as caught:
        run.opt.step()
    assert "passes()" in str(caught.value)
    assert_same(snapshot(run), before)


@every_displacing_method
def test_after_unfinished_passes_it_restores_and_refuses(case):
    run = build(case.method)
    (batch,) = batches(1)
    before = flat(run.params)
    passes = iter(run.opt.passes())
    next(passes).backward(loss_of(run.model, batch))
    next(passes)
    with pytest.raises(RuntimeError):
        run.opt.step()
    assert torch.equal(flat(run.params), before)
    step_by_passes(run, batch)
    assert not torch.equal(flat(run.params), before)


@every_base
@every_method
def test_with_every_lr_zero_it_initialises_and_counts_nothing(case, base):
    """As checkpoint libraries do: zero gradients, lr 0, step(), lr back."""
    run, twin = build(case.method, base), build(case.method, base)
    (batch,) = batches(1)
    before = flat(run.params)
    rates = [group["lr"] for group in run.opt.param_groups]
    for group in run.opt.param_groups:
        group["lr"] = 0.0
    for p in run.params:
        p.grad = torch.zeros_like(p)
    run.opt.step(closure=None)
    run.opt.zero_grad()
    for group, rate in zip(run.opt.param_groups, rates):
        group["lr"] = rate
    assert torch.equal(flat(run.params), before)
    assert set(run.base.state) == set(run.params)
    train(run, [batch])
    train(twin, [batch])
    for i, entries in twin.opt.state_dict()["state"].items():
        ours = {key: value for key, value in entries.items() if key.startswith("flatwise.")}
        found = run.opt.state_dict()["state"][i]
        assert_same({key: value for key, value in found.items() if key.startswith("flatwise.")}, ours)


@every_displacing_method
def test_with_some_lr_above_zero_it_is_refused(case):
    run = build(
        case.method,
        groups=lambda model: [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}],
    )
    loss_of(run.model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError):
        run.opt.step()


@every_displacing_method
def test_a_zero_lr_with_a_closure_is_an_ordinary_step(case):
    """A schedule that starts at zero: the step counts."""
    run = build(case.method, groups=lambda model: [{"params": model.parameters(), "lr": 0.0}])
    before = flat(run.params)
    step_by_closure(run, batches(1)[0])
    assert torch.equal(flat(run.params), before)
    assert run.opt.state_dict()["state"][0]["flatwise.step"] == 1


@every_method
def test_a_closure_by_keyword_and_by_position(case):
    run, twin = build(case.method), build(case.method)
    (batch,) = batches(1)
    run.opt.step(closure=closure_of(run, batch))
    twin.opt.step(closure_of(twin, batch))
    assert_same(snapshot(run), snapshot(twin))


@every_method
def test_gradients_may_be_inspected_after_the_passes(case):
    run = build(case.method)
    pass_through(run, batches(1)[0])
    norm = torch.nn.utils.clip_grad_norm_(run.params, 1.0)
    assert norm.item() > 0
    run.opt.step()


@pytest.mark.parametrize("steps", [0, 2], ids=["without state", "with state"])
@every_displacing_method
def test_a_warm_up_from_lr_zero_does_not_hide_the_missing_passes(case, steps):
    run = build(case.method)
    train(run, batches(steps))
    for group in run.opt.param_groups:
        group["lr"] = 0.0
    run.opt.zero_grad()
    loss_of(run.model, batches(1)[0]).backward()
    before = snapshot(run)
    with pytest.raises(RuntimeError, match="closure"):
        run.opt.step()
    assert_same(snapshot(run), before)
