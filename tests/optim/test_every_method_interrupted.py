"""Steps that do not come to their end, and runs that go on elsewhere, for every method and the ways that its settings open."""

import copy
import io
import itertools
import math

import pytest
import torch
from methods.cases import every_way
from optim.problems import (
    BASES,
    assert_same,
    batches,
    build,
    every_base,
    halves,
    mlp,
    noisy_net,
    norm_net,
    snapshot,
    train,
)
from optim.ways import STEPS, concluded, plain_run, sample_losses, step, uncounted


class Interruption(Exception):
    pass


def by_exception_before_backward(run, batch, at):
    for number, p in enumerate(run.opt.passes()):
        if number == at:
            raise Interruption
        p.backward(p.chosen(sample_losses(run.model, batch)).mean())
    run.opt.step()


def by_ctrl_c_after_backward(run, batch, at):
    for number, p in enumerate(run.opt.passes()):
        p.backward(p.chosen(sample_losses(run.model, batch)).mean())
        if number == at:
            raise KeyboardInterrupt
    run.opt.step()


def by_break_between_micro_batches(run, batch, at):
    for number, p in enumerate(run.opt.passes()):
        first, second = halves(batch)
        p.backward(p.chosen(sample_losses(run.model, first)).mean())
        if number == at:
            break
        p.backward(p.chosen(sample_losses(run.model, second)).mean())
    else:
        run.opt.step()
        return
    raise Interruption


def in_closure(run, batch, at):
    calls = itertools.count()

    def closure():
        loss = sample_losses(run.model, batch).mean()
        loss.backward()
        if next(calls) == at:
            raise Interruption
        return loss

    run.opt.step(closure)


def completes(route, run, batch, at):
    """Whether the step was taken, rather than interrupted."""
    try:
        route(run, batch, at)
    except (Interruption, KeyboardInterrupt):
        return False
    return True


ROUTES = [by_exception_before_backward, by_ctrl_c_after_backward, by_break_between_micro_batches, in_closure]


@pytest.mark.parametrize("route", ROUTES)
@every_way
def test_an_interruption_in_any_pass_changes_nothing(case, route):
    if case.selects and route is in_closure:
        pytest.skip("a closure cannot show the losses of samples")
    run, twin = build(case.method, net=norm_net), build(case.method, net=norm_net)
    for batch in batches(4):
        before = snapshot(run)
        for at in itertools.count():
            if completes(route, run, batch, at):
                break
            assert_same(snapshot(run), before)
        assert completes(route, twin, batch, None)
        assert_same(snapshot(run), snapshot(twin))


def overflowing(run, batch, at, scaler):
    """A step whose evaluation number `at` is not finite; whether there was one."""
    hit = []
    for p in run.opt.passes(scaler):
        hit.append(len(hit) == at)
        p.backward(p.chosen(sample_losses(run.model, batch)).mean() * (math.inf if hit[-1] else 1.0))
    scale = scaler.get_scale() if scaler else None
    if any(hit):
        left = [p.grad for p in run.params]
        assert all(g is None for g in left) if scaler is None else not any(torch.isfinite(g).any() for g in left)
    concluded(run, scaler)
    if scaler:
        assert scaler.get_scale() == (scale / 2 if any(hit) else scale)
    return any(hit)


@pytest.mark.parametrize("is_scaled", [False, True], ids=["plain", "scaled"])
@every_way
def test_a_pass_that_is_not_finite_skips_the_step_and_is_counted(case, is_scaled):
    base = "adamw" if is_scaled else "sgd"
    run, twin = (build(case.method, base, norm_net) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30) if is_scaled else None
    skipped = 0
    for batch in batches(4):
        before = uncounted(snapshot(run))
        for at in itertools.count():
            if not overflowing(run, batch, at, scaler):
                break
            skipped += 1
            assert_same(uncounted(snapshot(run)), before)
            assert run.opt.diagnostics["skipped"] == skipped
        step(twin, batch)
        assert_same(uncounted(snapshot(run)), uncounted(snapshot(twin)))
    assert run.opt.state_dict()["state"][0]["flatwise.skipped"] == skipped >= 4


def by_torch_save(run, fresh):
    file = io.BytesIO()
    torch.save({"model": run.model.state_dict(), "optimizer": run.opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh.model.load_state_dict(saved["model"])
    fresh.opt.load_state_dict(saved["optimizer"])
    return fresh


def by_deepcopy(run, fresh):
    return copy.deepcopy(run)


@pytest.mark.parametrize("transfer", [by_torch_save, by_deepcopy])
@every_base
@every_way
def test_a_run_resumed_at_any_step_goes_on_bitwise(case, base, transfer):
    fresh = lambda: build(case.method, base, noisy_net)
    run, data = fresh(), batches(STEPS)
    torch.manual_seed(1)
    started = []
    for batch in data:
        started.append((transfer(run, fresh()), torch.get_rng_state()))
        step(run, batch)
    expected = snapshot(run)
    for done, (again, random) in enumerate(started):
        torch.set_rng_state(random)
        train(again, data[done:], step)
        assert_same(snapshot(again), expected, f"resumed after step {done}")


@every_base
@every_way
def test_what_is_ours_is_marked_and_the_base_never_sees_it(case, base):
    run = build(case.method, base)
    names = {i: set(entries) for i, entries in run.opt.state_dict()["state"].items()}
    train(run, batches(STEPS), step)
    state, theirs = run.opt.state_dict(), run.base.state_dict()
    assert run.opt.param_groups is run.base.param_groups
    assert (
        state["param_groups"] == theirs["param_groups"] == BASES[base](mlp().parameters()).state_dict()["param_groups"]
    )
    known = plain_run(base, batches(1))[1].state_dict()["state"]
    for i, entries in state["state"].items():
        ours = {name for name in entries if name.startswith("flatwise.")}
        assert ours == names[i]
        assert {name: entries[name].shape for name in ours if entries[name].dim()} == {
            f"flatwise.{name}": run.params[i].shape for name in case.method.init(run.params).vectors
        }
        assert_same({name: t for name, t in entries.items() if name not in ours}, theirs["state"][i])
        assert set(theirs["state"][i]) == set(known[i])


@every_way
def test_the_method_starts_anew_from_the_bases_own_state(case):
    """A checkpoint from before the method was put around the base optimizer."""
    _, plain = plain_run("adamw", batches(3))
    run = build(case.method, "adamw")
    if case.method.init(run.params).vectors:
        with pytest.warns(UserWarning, match="starts anew"):
            run.opt.load_state_dict(plain.state_dict())
    else:
        run.opt.load_state_dict(plain.state_dict())
    assert_same(run.base.state_dict()["state"], plain.state_dict()["state"])
    train(run, batches(2), step)
    assert run.base.state_dict()["state"][0]["step"] == 5
