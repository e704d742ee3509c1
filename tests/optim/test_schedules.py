"""Schedules of rho: factors in closed form, one rho at a time, and continued after a resume."""

import math
from dataclasses import replace

import pytest
import torch
from methods.cases import RHO, every_displacing_method
from optim.problems import assert_same, batches, build, count_evaluations, flat, snapshot, step_by_passes, train

import flatwise as fw
from flatwise.optim.schedules import Cosine, Linear, TiedToLearningRate

SCHEDULES = {
    "linear": Linear(1.0, 0.0, steps=6),
    "cosine": Cosine(0.2, 1.5, steps=6),
    "tied": TiedToLearningRate(highest=0.1),
    "own": lambda step, lr: 1 / (1 + step),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def test_linear_in_closed_form():
    factor = Linear(1.0, 0.5, steps=10)
    assert [factor(s, 0.1) for s in (0, 5, 10, 1000)] == [1.0, 0.75, 0.5, 0.5]


def test_cosine_in_closed_form():
    factor = Cosine(0.0, 2.0, steps=10)
    assert [factor(s, 0.1) for s in (0, 5, 10, 1000)] == pytest.approx([0.0, 1.0, 2.0, 2.0])
    assert factor(3, 0.1) == pytest.approx(1 - math.cos(0.3 * math.pi))


def test_tied_to_the_learning_rate_in_closed_form():
    """GSAM (arXiv 2203.08065): rho falls from rho_max to rho_min as the learning rate does from its highest to its lowest."""
    factor = TiedToLearningRate(highest=0.4, lowest=0.2, least=0.5)
    assert [factor(0, lr) for lr in (0.4, 0.3, 0.2, 0.1)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert TiedToLearningRate(highest=0.4)(0, 0.1) == pytest.approx(0.25)


@every_schedule
@every_displacing_method
def test_each_step_is_that_of_a_method_with_the_scheduled_rho(case, name):
    schedule = SCHEDULES[name]
    data = batches(8, dtype=torch.float64)
    scheduled = build(case.method, dtype=torch.float64, rho_schedule=schedule)
    by_hand = build(case.method, dtype=torch.float64)
    for step, batch in enumerate(data):
        for run in (scheduled, by_hand):
            run.opt.param_groups[0]["lr"] = 0.1 * (1 - step / 16)
        by_hand.opt.method = replace(case.method, rho=RHO * schedule(step, 0.1 * (1 - step / 16)))
        for run in (scheduled, by_hand):
            step_by_passes(run, batch)
        assert_same(snapshot(scheduled), snapshot(by_hand))


@every_displacing_method
def test_where_the_factor_is_zero_one_evaluation_is_enough(case):
    run = build(case.method, rho_schedule=Linear(1.0, 0.0, steps=2))
    counts = [count_evaluations(run, step_by_passes, batch) for batch in batches(4)]
    assert counts[0] >= 2
    assert counts[2:] == [1, 1]


@every_schedule
@every_displacing_method
def test_a_resumed_run_goes_on_at_its_place_in_the_schedule(case, name):
    data = batches(7)
    options = {"rho_schedule": SCHEDULES[name]}
    run, resumed = build(case.method, **options), build(case.method, **options)
    train(run, data[:4])
    resumed.model.load_state_dict(run.model.state_dict())
    resumed.opt.load_state_dict(run.opt.state_dict())
    for r in (run, resumed):
        train(r, data[4:])
    assert_same(snapshot(resumed), snapshot(run))


def test_groups_keep_their_proportions():
    """A schedule multiplies every group's rho, also one that differs from the method's."""
    groups = lambda model: [
        {"params": model[0].parameters(), "rho": 3 * RHO},
        {"params": model[2].parameters(), "rho": 0.0},
    ]
    halved = lambda model: [
        {"params": model[0].parameters(), "rho": 1.5 * RHO},
        {"params": model[2].parameters(), "rho": 0.0},
    ]
    data = batches(5, dtype=torch.float64)
    scheduled = build(fw.methods.SAM(RHO), groups=groups, dtype=torch.float64, rho_schedule=lambda step, lr: 0.5)
    by_hand = build(fw.methods.SAM(RHO), groups=halved, dtype=torch.float64)
    for run in (scheduled, by_hand):
        train(run, data)
    torch.testing.assert_close(flat(scheduled.params), flat(by_hand.params), rtol=0, atol=1e-12)


def test_skipped_steps_do_not_advance_the_schedule():
    run = build(fw.methods.SAM(RHO), rho_schedule=Linear(1.0, 0.0, steps=4))
    good, bad = batches(2)
    bad[0][0] = math.nan
    train(run, [good, bad, bad, good])
    assert run.opt.diagnostics["displacement_norm"] == pytest.approx(RHO * 0.75, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(-1.0, 0.0, 5), "start must be finite and not negative"),
        (lambda: Cosine(1.0, math.nan, 5), "end must be finite"),
        (lambda: Linear(1.0, 0.0, 0), "steps must be at least 1"),
        (lambda: TiedToLearningRate(0.1, lowest=0.1), "highest must be above lowest"),
        (lambda: build(fw.methods.SGD(), rho_schedule=Linear(1.0, 0.0, 5)), "has no effect: the method SGD has no rho"),
    ],
)
def test_bad_schedules_are_refused_at_once(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_the_highest_learning_rate_is_tied_with_has_to_be_named():
    """A second number could be the lowest learning rate or the least factor."""
    with pytest.raises(TypeError, match="positional"):
        TiedToLearningRate(0.4, 0.2)  # pyright: ignore[reportCallIssue]


def test_a_schedule_that_is_no_function_is_refused_at_once():
    with pytest.raises(TypeError, match=r"rho_schedule must be one of flatwise\.schedules"):
        build(fw.methods.SAM(), rho_schedule=0.5)


@pytest.mark.parametrize("factor", [-0.5, math.inf, math.nan])
def test_a_factor_out_of_range_is_refused_before_anything_moves(factor):
    run = build(fw.methods.SAM(), rho_schedule=lambda step, lr: factor)
    before = snapshot(run)
    with pytest.raises(ValueError, match="the factor of rho_schedule must be finite and not negative"):
        train(run, batches(1))
    assert_same(snapshot(run), before)
