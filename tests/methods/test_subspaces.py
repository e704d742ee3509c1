"""Dom-SGD and Bulk-SGD: the projection of whatever the base optimizer did, when the space is looked for, what is refused."""

import copy
from dataclasses import dataclass

import pytest
import torch
from methods.cases import fixed_space
from optim.problems import (
    assert_same,
    batches,
    build,
    count_evaluations,
    every_base,
    flat,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise import vectors as V
from flatwise.methods import PRGD, SAM, SGD, Bulk, Dialogue, Dominant, EigenSAM, Interval, Late

DTYPE = torch.float64


def update_of(method, base="sgd", steps=1):
    """The change of the weights in the last step, and the basis of the space."""
    run = build(method, base, dtype=DTYPE)
    for batch in batches(steps, dtype=DTYPE):
        before = flat(run.params)
        step_by_closure(run, batch)
    like = [torch.zeros_like(p) for p in run.params]
    return flat(run.params) - before, torch.stack([flat(v) for v in fixed_space([like, like], like)], dim=1)


@every_base
@pytest.mark.parametrize("within", [SGD(), SAM(rho=0.1)], ids=["sgd", "sam"])
def test_the_parts_are_the_projection_and_the_rest_and_make_the_whole(base, within):
    whole, basis = update_of(within, base)
    inside, _ = update_of(Dominant(within, k=2, subspace=fixed_space), base)
    outside, _ = update_of(Bulk(within, k=2, subspace=fixed_space), base)
    torch.testing.assert_close(inside, basis @ basis.T @ whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(inside + outside, whole, rtol=0, atol=1e-14)


@every_base
def test_momentum_and_weight_decay_are_projected_too(base):
    """After five steps the update is in the space, or off it, to rounding."""
    inside, basis = update_of(Dominant(SGD(), k=2, subspace=fixed_space), base, steps=5)
    outside, _ = update_of(Bulk(SGD(), k=2, subspace=fixed_space), base, steps=5)
    assert (inside - basis @ basis.T @ inside).norm() < 1e-14
    assert (basis.T @ outside).norm() < 1e-14
    assert inside.norm() > 1e-4
    assert outside.norm() > 1e-4


def counting(looks):
    def space(known, weights):
        looks.append(all(bool(V.norm(v) == 0) for v in known))
        return fixed_space(known, weights)

    return space


def test_it_looks_every_so_many_steps_and_knows_what_it_found_before():
    looks = []
    run = build(Dominant(SGD(), k=2, every=3, subspace=counting(looks)))
    seen = []
    for batch in batches(8):
        step_by_passes(run, batch)
        seen.append(len(looks))
    assert seen == [1, 1, 1, 2, 2, 2, 3, 3]
    assert looks == [True, False, False]


def test_a_look_is_no_evaluation():
    run = build(Bulk(SGD(), k=2, subspace=fixed_space))
    assert [count_evaluations(run, step_by_passes, batch) for batch in batches(3)] == [1, 1, 1]


def test_the_space_is_shown_the_optimizers_parameters_with_gradients_enabled():
    seen = []

    def space(known, weights):
        seen.append((torch.is_grad_enabled(), [id(w) for w in weights]))
        return fixed_space(known, weights)

    run = build(Dominant(SGD(), k=2, subspace=space))
    step_by_closure(run, batches(1)[0])
    assert seen == [(True, [id(p) for p in run.params])]


@pytest.mark.parametrize("method", [Dominant, Bulk])
def test_a_skipped_step_changes_nothing_and_the_look_is_taken_again(method):
    looks = []
    run = build(method(SGD(), k=2, every=4, subspace=counting(looks)))
    (x, y), good = batches(2)
    before = snapshot(run)
    step_by_closure(run, (x * float("nan"), y))
    after = snapshot(run)
    assert_same(after["model"], before["model"])
    assert run.opt.diagnostics["skipped"] == 1
    step_by_closure(run, good)
    assert len(looks) == 2


@pytest.mark.parametrize("method", [Dominant, Bulk])
@every_base
def test_resuming_at_any_step_continues_bitwise(method, base):
    data, projecting = batches(6), method(SGD(), k=2, every=4, subspace=fixed_space)
    run = build(projecting, base)
    saved = [copy.deepcopy((run.model.state_dict(), run.opt.state_dict()))]
    for batch in data:
        step_by_closure(run, batch)
        saved.append(copy.deepcopy((run.model.state_dict(), run.opt.state_dict())))
    for step, (model, opt) in enumerate(saved):
        again = build(projecting, base)
        again.model.load_state_dict(model)
        again.opt.load_state_dict(opt)
        train(again, data[step:])
        assert_same(snapshot(again), snapshot(run), f"resumed after step {step}")


# --- with other methods -----------------------------------------------------------------------------------------------


def test_around_it_a_wrapper_projects_only_when_it_is_its_turn():
    """Off its turn the base optimizer's step is bitwise its own."""
    data = batches(4)
    for method, turns in (
        (Late(Dominant(SGD(), k=2, subspace=fixed_space), start=2), [False, False, True, True]),
        (Interval(Bulk(SGD(), k=2, subspace=fixed_space), every=3), [True, False, False, True]),
    ):
        run = build(method)
        for batch, turn in zip(data, turns):
            plain = build(SGD())
            plain.model.load_state_dict(run.model.state_dict())
            plain.base.load_state_dict(copy.deepcopy(run.base.state_dict()))
            step_by_closure(run, batch)
            step_by_closure(plain, batch)
            assert torch.equal(flat(run.params), flat(plain.params)) is not turn


def test_it_goes_around_a_method_with_an_eigenvector_of_its_own():
    run = build(Bulk(EigenSAM(rho=0.1, every=2, iterations=2), k=2, subspace=fixed_space))
    train(run, batches(3))
    entry = run.opt.state_dict()["state"][0]
    assert {"flatwise.eigenvector", "flatwise.dominant.0", "flatwise.dominant.1"} <= set(entry)


@dataclass(frozen=True)
class Counted(Dialogue):
    """It counts how often its update is asked for."""

    calls: list

    @property
    def changes_update(self):
        return True

    def passes(self, state):
        return SGD().passes(state)

    def update(self, state, weights, update):
        self.calls.append(state.step)
        return V.scale(update, 0.5)


@pytest.mark.parametrize("method", [Dominant, Bulk])
def test_the_update_of_a_method_within_is_asked_for_once_a_step(method):
    calls = []
    run = build(method(Counted(calls), k=2, subspace=fixed_space))
    train(run, batches(3))
    assert calls == [0, 1, 2]


def test_the_update_of_a_method_within_is_what_is_projected():
    whole, basis = update_of(PRGD(every=2, growth=1.5), steps=2)
    inside, _ = update_of(Dominant(PRGD(every=2, growth=1.5), k=2, subspace=fixed_space), steps=1)
    assert (inside - basis @ basis.T @ inside).norm() < 1e-14
    assert whole.norm() > 0


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Dominant(SGD()), Bulk(SGD()), Late(Dominant(SGD()))])
def test_without_a_space_the_message_says_what_to_pass(method):
    with pytest.raises(ValueError, match=r"pass subspace=flatwise\.curvature\.eigenspace\(objective\)"):
        build(method)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"subspace": "hessian"}, TypeError, "subspace must be a function"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Dominant(SGD(), **options)


@pytest.mark.parametrize("within", [Dominant(SGD()), Late(Bulk(SGD()))])
def test_two_projections_in_one_method_are_refused(within):
    """They would remember their vectors under the same names."""
    with pytest.raises(ValueError, match="projects on a subspace already"):
        Bulk(within, k=1)


def test_too_few_vectors_are_refused_and_nothing_has_changed():
    run = build(Dominant(SGD(), k=3, subspace=lambda known, weights: fixed_space(known, weights)[:2]))
    before = snapshot(run)
    with pytest.raises(ValueError, match="as many vectors as it is given, 3, got 2"):
        step_by_closure(run, batches(1)[0])
    assert_same(snapshot(run), before)
