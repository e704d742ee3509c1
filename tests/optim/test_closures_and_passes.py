"""Closures, lists of closures, passes, micro-batches: one step, however it is driven."""

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    closure_of,
    count_evaluations,
    every_base,
    flat,
    halves,
    loss_of,
    noisy_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise.methods import SAM, TSAM, LookSAM


@every_base
@every_method
def test_closures_and_passes_give_the_same_bitwise(case, base):
    data = batches(7)
    by_closure, by_passes = build(case.method, base), build(case.method, base)
    train(by_closure, data, step_by_closure)
    train(by_passes, data, step_by_passes)
    assert_same(snapshot(by_passes), snapshot(by_closure))


@every_method
def test_closures_and_passes_give_the_same_bitwise_under_batchnorm_and_dropout(case):
    def run_with(step):
        torch.manual_seed(3)
        run = build(case.method, net=noisy_net)
        train(run, batches(7), step)
        return snapshot(run)

    assert_same(run_with(step_by_passes), run_with(step_by_closure))


@every_method
def test_a_loop_inside_the_context_manager_is_the_same_loop(case):
    def step_inside_with(run, batch):
        with run.opt.passes() as passes:
            for p in passes:
                p.backward(loss_of(run.model, batch))
        run.opt.step()

    managed, plain = build(case.method), build(case.method)
    train(managed, batches(5), step_inside_with)
    train(plain, batches(5), step_by_passes)
    assert_same(snapshot(managed), snapshot(plain))


@pytest.mark.parametrize("zero", ["wrapper", "wrapper, to zeros", "base", "model"])
@every_method
def test_a_closure_may_zero_gradients_or_not(case, zero):
    plain, zeroing = build(case.method), build(case.method)
    zeros = {
        "wrapper": zeroing.opt.zero_grad,
        "wrapper, to zeros": lambda: zeroing.opt.zero_grad(set_to_none=False),
        "base": zeroing.base.zero_grad,
        "model": zeroing.model.zero_grad,
    }
    for batch in batches(4):
        plain.opt.step(closure_of(plain, batch))
        zeroing.opt.step(closure_of(zeroing, batch, zeros[zero]))
    assert_same(snapshot(zeroing), snapshot(plain))


@pytest.mark.parametrize("zeroing", [False, True])
@every_method
def test_micro_batches_as_closures_may_zero_gradients_or_not(case, zeroing):
    run, plain = (build(case.method, dtype=torch.float64) for _ in range(2))
    for batch in batches(4, dtype=torch.float64):
        zero = run.opt.zero_grad if zeroing else None
        run.opt.step([closure_of(run, part, zero) for part in halves(batch)])
        step_by_closure(plain, batch)
    torch.testing.assert_close(flat(run.params), flat(plain.params), rtol=0, atol=1e-8)


@every_method
def test_gradients_left_over_from_before_do_not_count(case):
    clean, stale = build(case.method), build(case.method)
    first, *rest = batches(4)
    loss_of(stale.model, first).backward()
    with pytest.warns(UserWarning, match="gradients from a backward outside"):
        step_by_passes(stale, first)
    step_by_passes(clean, first)
    for batch in rest:
        loss_of(stale.model, first).backward()
        step_by_passes(stale, batch)
        step_by_passes(clean, batch)
        assert_same(stale.model.state_dict(), clean.model.state_dict())
    loss_of(stale.model, first).backward()
    step_by_closure(stale, first)
    step_by_closure(clean, first)
    assert_same(snapshot(stale), snapshot(clean))


def by_backward(run, batch):
    for p in run.opt.passes():
        for part in halves(batch):
            p.backward(loss_of(run.model, part))
    run.opt.step()


def by_record(run, batch):
    for p in run.opt.passes():
        for part in halves(batch):
            loss = loss_of(run.model, part)
            loss.backward()
            p.record(loss)
    run.opt.step()


def by_weights(run, batch):
    for p in run.opt.passes():
        for part in halves(batch, (4, 12)):
            p.backward(loss_of(run.model, part), weight=len(part[1]))
    run.opt.step()


def by_recorded_weights(run, batch):
    for p in run.opt.passes():
        for part in halves(batch, (4, 12)):
            loss = loss_of(run.model, part)
            loss.backward()
            p.record(loss, weight=len(part[1]))
    run.opt.step()


def by_parts(run, batch):
    parts = halves(batch)
    for p in run.opt.passes(parts=2):
        p.backward(loss_of(run.model, parts[p.part]))
    run.opt.step()


@pytest.mark.parametrize("step", [by_backward, by_record, by_weights, by_recorded_weights, by_parts])
@every_method
def test_accumulation_equals_the_full_batch(case, step):
    accumulated, full = (build(case.method, dtype=torch.float64) for _ in range(2))
    data = batches(10, dtype=torch.float64)
    train(accumulated, data, step)
    train(full, data, step_by_passes)
    torch.testing.assert_close(flat(accumulated.params), flat(full.params), rtol=0, atol=1e-8)


@every_method
def test_record_takes_over_a_backward_of_somebody_else_bitwise(case):
    def recorded(run, batch):
        for p in run.opt.passes():
            loss = loss_of(run.model, batch)
            loss.backward()
            p.record(loss)
        run.opt.step()

    own, foreign = build(case.method), build(case.method)
    train(own, batches(5), step_by_passes)
    train(foreign, batches(5), recorded)
    assert_same(snapshot(foreign), snapshot(own))


@every_method
def test_a_step_returns_the_loss_at_the_weights(case):
    run = build(case.method)
    for batch in batches(4):
        expected = loss_of(run.model, batch).item()
        assert float(step_by_closure(run, batch)) == pytest.approx(expected, rel=1e-6)
        assert run.opt.diagnostics["loss"] == pytest.approx(expected, rel=1e-6)


@every_method
def test_a_list_of_closures_returns_the_mean_loss_at_the_weights(case):
    run = build(case.method)
    for batch in batches(4):
        parts = halves(batch, (4, 12))
        expected = sum(loss_of(run.model, part).item() for part in parts) / 2
        found = run.opt.step([closure_of(run, part) for part in parts])
        assert float(found) == pytest.approx(expected, rel=1e-6)


@every_method
def test_grad_is_the_direction_after_the_passes(case):
    """So that clipping by hand reads as always: scaling .grad scales the step of plain SGD."""
    make = lambda params: torch.optim.SGD(params, lr=0.1)
    whole, half = build(case.method, make), build(case.method, make)
    (batch,) = batches(1)
    start = flat(whole.params)
    step_by_passes(whole, batch)
    for p in half.opt.passes():
        p.backward(loss_of(half.model, batch))
    for p in half.params:
        p.grad.mul_(0.5)
    half.opt.step()
    torch.testing.assert_close(flat(half.params) - start, 0.5 * (flat(whole.params) - start), rtol=1e-4, atol=1e-6)


@every_method
def test_closures_and_passes_may_alternate(case):
    mixed, plain = build(case.method), build(case.method)
    for i, batch in enumerate(batches(6)):
        (step_by_closure if i % 2 else step_by_passes)(mixed, batch)
        step_by_passes(plain, batch)
    assert_same(snapshot(mixed), snapshot(plain))


@every_displacing_method
def test_a_pass_says_where_it_is(case):
    run = build(case.method)
    start = flat(run.params)
    (batch,) = batches(1)
    seen = []
    for p in run.opt.passes():
        assert p.at_weights == torch.equal(flat(run.params), start)
        seen.append((p.at_weights, p.is_probe))
        p.backward(loss_of(run.model, batch))
    assert seen[0] == (True, False)
    assert not seen[-1][0]
    assert torch.equal(flat(run.params), start)


@every_method
def test_one_pass_of_a_step_counts_for_metrics(case):
    run = build(case.method)
    for batch in batches(6):
        seen = []
        for p in run.opt.passes():
            seen.append((p.counts, p.is_probe))
            p.backward(loss_of(run.model, batch))
        run.opt.step()
        assert seen.index((True, False)) == [is_probe for _, is_probe in seen].index(False)
        assert sum(counts for counts, _ in seen) == 1


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("method", [SAM(), LookSAM(every=2), TSAM()], ids=["sam", "looksam", "never at the weights"])
def test_every_sample_counts_once_for_metrics(method, each):
    run = build(method)
    for batch in batches(3):
        parts = halves(batch)
        counted = []
        for p in run.opt.passes(parts=2, each=each):
            for micro_batch in halves(parts[p.part], (4, 4)):
                counted += [micro_batch[0]] if p.counts else []
                p.backward(loss_of(run.model, micro_batch))
        run.opt.step()
        assert torch.equal(torch.cat(counted), batch[0])


@every_method
def test_the_passes_of_the_methods_are_as_many_as_documented(case):
    """Eigen-SAM: one base probe at the first refresh, `iterations` displaced ones at each; one pass for SGD, else two."""
    run = build(case.method)
    counts = [count_evaluations(run, step_by_passes, batch) for batch in batches(5)]
    plain = 1 if case.name == "sgd" else 2
    expected = [2 + 1 + 2, 2, 2, 2 + 2, 2] if case.name == "eigen-sam" else [plain] * 5
    assert counts == expected


@every_method
def test_diagnostics_count_evaluations_of_the_last_step(case):
    run = build(case.method)
    for batch in batches(4):
        evaluations = count_evaluations(run, step_by_closure, batch)
        assert run.opt.diagnostics["evaluations"] == evaluations
        assert run.opt.diagnostics["skipped"] == 0


@every_method
def test_weights_keep_their_storage(case):
    run = build(case.method)
    places = [p.data_ptr() for p in run.params]
    train(run, batches(4))
    assert [p.data_ptr() for p in run.params] == places


@every_method
def test_zeroing_gradients_in_the_loop_body_is_harmless(case):
    """An old habit; every pass starts with cleared gradients anyway."""

    def zeroing(run, batch):
        for p in run.opt.passes():
            run.opt.zero_grad()
            p.backward(loss_of(run.model, batch))
        run.opt.step()

    habit, plain = build(case.method), build(case.method)
    train(habit, batches(4), zeroing)
    train(plain, batches(4), step_by_passes)
    assert_same(snapshot(habit), snapshot(plain))


@every_method
def test_reading_between_the_passes_and_the_step_changes_nothing(case):
    """A checkpoint or a look at the learning rate there does not throw the direction away."""

    def reading(run, batch):
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
        run.opt.state_dict()
        assert run.opt.diagnostics["loss"] > 0
        assert run.opt.param_groups[0]["lr"] > 0
        run.opt.step()

    read, plain = build(case.method), build(case.method)
    train(read, batches(4), reading)
    train(plain, batches(4), step_by_passes)
    assert_same(snapshot(read), snapshot(plain))
