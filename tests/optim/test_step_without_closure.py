"""opt.step() without closure: legal after finished passes, for one-evaluation methods, with every lr zero; else refused."""

import math
import weakref

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


def test_the_gradient_of_a_step_without_passes_is_no_leftover():
    run = build(methods.Late(methods.SAM(rho=0.1), start=1))
    (first, second) = batches(2)
    loss_of(run.model, first).backward()
    run.opt.step()
    step_by_passes(run, second)  # a warning would be an error here


ONE_EVALUATION = {
    "sgd": methods.SGD(),
    "late": methods.Late(methods.SAM(rho=0.1), start=100),
    "interval": methods.Interval(methods.SAM(rho=0.1), every=100),
    "looksam": methods.LookSAM(rho=0.1, every=100),
    "ae-sam": methods.AESAM(rho=0.1, start=1e6, end=1e6),
}
every_one_evaluation = pytest.mark.parametrize("method", ONE_EVALUATION.values(), ids=ONE_EVALUATION)


def step_alone(run, batch, factor=1.0):
    run.opt.zero_grad()
    (loss_of(run.model, batch) * factor).backward()
    run.opt.step()


def begun(method, base="sgd", **options):
    """At step 1: the first one has passes, for those that begin with more than one evaluation."""
    run = build(method, base, **options)
    step_by_passes(run, batches(1)[0])
    return run


@every_base
@pytest.mark.parametrize("factor", [math.inf, math.nan])
@every_one_evaluation
def test_a_gradient_that_is_not_finite_is_skipped_and_counted_as_with_passes(method, factor, base):
    run, good = begun(method, base), batches(3)
    step_alone(run, good[0])
    before = snapshot(run)
    step_alone(run, good[1], factor)
    assert run.opt.diagnostics["skipped"] == 1
    assert all(p.grad is None for p in run.params)
    after = snapshot(run)
    for entries in after["optimizer"]["state"].values():
        entries["flatwise.skipped"].zero_()
    assert_same(after, before)
    step_alone(run, good[2])
    assert run.opt.diagnostics["skipped"] == 1
    assert not torch.equal(flat(run.params), torch.cat([t.reshape(-1) for t in before["model"].values()]))


@every_one_evaluation
def test_the_numbers_of_a_step_without_passes_are_its_own_and_its_loss_is_not_known(method):
    run, twin, batch = begun(method), begun(method), batches(2)[1]
    assert run.opt.loss is not None
    step_alone(run, batch)
    step_by_passes(twin, batch)
    assert run.opt.loss is None
    numbers, expected = run.opt.diagnostics, twin.opt.diagnostics
    assert math.isnan(numbers.pop("loss"))
    assert math.isfinite(expected.pop("loss"))
    assert numbers == expected


def test_a_step_without_passes_keeps_no_gradient_alive():
    run = begun(methods.SGD())
    step_alone(run, batches(1)[0])
    gradient = weakref.ref(run.params[0].grad)
    run.opt.zero_grad()
    assert gradient() is None


def test_sparse_gradients_go_to_a_base_optimizer_that_takes_them():
    run = build(methods.SGD(), torch.optim.SparseAdam, net=lambda _: torch.nn.Embedding(5, 3, sparse=True))
    for factor in (1.0, math.nan):
        before = flat(run.params)
        run.opt.zero_grad()
        (run.model(torch.tensor([1, 1, 2])).square().sum() * factor).backward()
        run.opt.step()
        assert torch.equal(flat(run.params), before) == math.isnan(factor)
    assert run.opt.diagnostics["skipped"] == 1


def test_a_mistake_in_the_first_passes_is_told_also_after_steps_without():
    run = build(methods.Late(methods.SAM(rho=0.1), start=1))
    step_alone(run, batches(1)[0])
    run.opt.zero_grad()

    def clipped_within():
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batches(1)[0]))
            torch.nn.utils.clip_grad_norm_(run.params, 1e-3)

    with pytest.warns(UserWarning, match="gradients were changed within a pass"):
        clipped_within()


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
