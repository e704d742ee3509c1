"""An exception, `break` or Ctrl-C in any pass of any step leaves everything as it was before the step."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    closure_of,
    every_base,
    flat,
    loss_of,
    norm_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)


class Interruption(Exception):
    pass


def in_closure(run, batch, at, error=Interruption):
    calls = itertools.count()

    def closure():
        loss = loss_of(run.model, batch)
        loss.backward()
        if next(calls) == at:
            raise error
        return loss

    run.opt.step(closure)


def in_closure_before_backward(run, batch, at, error=Interruption):
    calls = itertools.count()

    def closure():
        loss = loss_of(run.model, batch)
        if next(calls) == at:
            raise error
        loss.backward()
        return loss

    run.opt.step(closure)


def ctrl_c_in_closure(run, batch, at):
    in_closure(run, batch, at, KeyboardInterrupt)


def in_second_closure_of_two(run, batch, at):
    calls = itertools.count()

    def second():
        if next(calls) == at:
            raise Interruption
        return closure_of(run, batch)()

    run.opt.step([closure_of(run, batch), second])


def in_loop(run, batch, at, error=Interruption):
    for i, p in enumerate(run.opt.passes()):
        p.backward(loss_of(run.model, batch))
        if i == at:
            raise error
    run.opt.step()


def in_loop_before_backward(run, batch, at):
    for i, p in enumerate(run.opt.passes()):
        if i == at:
            raise Interruption
        p.backward(loss_of(run.model, batch))
    run.opt.step()


def ctrl_c_in_loop(run, batch, at):
    in_loop(run, batch, at, KeyboardInterrupt)


def inside_with(run, batch, at):
    with run.opt.passes() as passes:
        for i, p in enumerate(passes):
            if i == at:
                raise Interruption
            p.backward(loss_of(run.model, batch))
    run.opt.step()


def inside_with_and_kept(run, batch, at):
    """The iterator outlives the block, the exception does not wait for it."""
    run.kept = run.opt.passes()
    with run.kept as passes:
        for i, p in enumerate(passes):
            p.backward(loss_of(run.model, batch))
            if i == at:
                raise Interruption
    run.opt.step()


def by_break(run, batch, at):
    for i, p in enumerate(run.opt.passes()):
        if i == at:
            break
        p.backward(loss_of(run.model, batch))
    else:
        run.opt.step()
        return
    raise Interruption


def by_break_after_backward(run, batch, at):
    for i, p in enumerate(run.opt.passes()):
        p.backward(loss_of(run.model, batch))
        if i == at:
            break
    else:
        run.opt.step()
        return
    raise Interruption


ROUTES = [
    in_closure,
    in_closure_before_backward,
    ctrl_c_in_closure,
    in_loop,
    in_loop_before_backward,
    ctrl_c_in_loop,
    inside_with,
    inside_with_and_kept,
    by_break,
    by_break_after_backward,
]


def completes(route, run, batch, at):
    """Whether the step was taken, rather than interrupted."""
    try:
        route(run, batch, at)
    except (Interruption, KeyboardInterrupt):
        return False
    return True


@pytest.mark.parametrize("route", ROUTES)
@every_method
def test_an_interruption_in_any_pass_of_any_step_changes_nothing(case, route):
    run, twin = build(case.method, net=norm_net), build(case.method, net=norm_net)
    interruptions = 0
    for batch in batches(4):
        for at in itertools.count():
            before = snapshot(run)
            if completes(route, run, batch, at):
                break
            interruptions += 1
            assert_same(snapshot(run), before)
        step_by_closure(twin, batch)
        assert_same(snapshot(run), snapshot(twin))
    assert interruptions >= 4


@every_method
def test_an_interruption_between_two_micro_batches_changes_nothing(case):
    run = build(case.method, net=norm_net)
    for batch in batches(4):
        for at in itertools.count():
            before = snapshot(run)
            if completes(in_second_closure_of_two, run, batch, at):
                break
            assert_same(snapshot(run), before)


def open_dialogue(run, batch, at):
    """The iterator of a dialogue left open in pass `at`, or None when there are not that many."""
    passes = iter(run.opt.passes())
    for i, p in enumerate(passes):
        if i == at:
            return passes
        p.backward(loss_of(run.model, batch))
    return None


def step_without_closure(run, batch):
    with pytest.raises(RuntimeError, match="passes"):
        run.opt.step()


CALLS = {
    "state_dict": lambda run, batch: run.opt.state_dict(),
    "step without closure": step_without_closure,
    "add_param_group": lambda run, batch: run.opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]}),
    "load_state_dict": lambda run, batch: run.opt.load_state_dict(run.saved),
}


@pytest.mark.parametrize("call", CALLS)
@every_displacing_method
def test_with_the_iterator_kept_any_other_call_restores_first(case, call):
    (batch,) = batches(1)
    for at in itertools.count():
        run = build(case.method, net=norm_net)
        run.saved = run.opt.state_dict()
        start, buffers = flat(run.params), flat(run.model.buffers())
        kept = open_dialogue(run, batch, at)
        if kept is None:
            break
        CALLS[call](run, batch)
        assert torch.equal(flat(run.params), start)
        assert torch.equal(flat(run.model.buffers()), buffers)
        assert run.model.training
        with pytest.raises((RuntimeError, StopIteration)):
            next(kept)
        assert torch.equal(flat(run.params), start)
    assert at > 1


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes])
@every_displacing_method
def test_with_the_iterator_kept_the_next_step_is_a_normal_one(case, step):
    (batch,) = batches(1)
    for at in itertools.count():
        run, twin = build(case.method, net=norm_net), build(case.method, net=norm_net)
        kept = open_dialogue(run, batch, at)
        if kept is None:
            break
        step(run, batch)
        step(twin, batch)
        assert_same(snapshot(run), snapshot(twin))


@every_displacing_method
def test_a_checkpoint_of_an_open_dialogue_holds_the_step_before(case):
    first, second = batches(2)
    for at in itertools.count():
        run = build(case.method)
        step_by_passes(run, first)
        before = snapshot(run)
        if open_dialogue(run, second, at) is None:
            break
        assert_same(run.opt.state_dict(), before["optimizer"])


class Fragile(torch.optim.SGD):
    """Fails before it moves anything, when told to."""

    broken = False

    def step(self, closure=None):
        if self.broken:
            raise Interruption
        return super().step(closure)


@every_method
def test_an_exception_in_the_bases_step_changes_nothing(case):
    make = lambda params: Fragile(params, lr=0.1, momentum=0.9)
    run, twin = build(case.method, make, norm_net), build(case.method, make, norm_net)
    for i, batch in enumerate(batches(4)):
        before = snapshot(run)
        run.base.broken = True
        with pytest.raises(Interruption):
            (step_by_passes if i % 2 else step_by_closure)(run, batch)
        after = snapshot(run)
        for key in ("base", "optimizer", "modes"):
            assert_same(after[key], before[key])
        assert torch.equal(flat(run.params), flat([before["model"][name] for name, _ in run.model.named_parameters()]))
        run.model.load_state_dict(before["model"])
        run.base.broken = False
        step_by_passes(run, batch)
        step_by_passes(twin, batch)
        assert_same(snapshot(run), snapshot(twin))


@every_base
@every_method
def test_a_finished_dialogue_that_is_never_stepped_changes_no_weights(case, base):
    """`continue` after the passes: the next passes() starts over, and says so once."""
    run, twin = build(case.method, base), build(case.method, base)
    abandoned, *rest = batches(5)
    for i, batch in enumerate(rest):
        for p in run.opt.passes():
            p.backward(loss_of(run.model, abandoned))
        with nullcontext() if i else pytest.warns(UserWarning, match="the weights have not moved"):
            step_by_passes(run, batch)
    train(twin, rest)
    assert_same(snapshot(run), snapshot(twin))
