import math

import pytest

from flatwise.training import TrainConfig
from flatwise.training.schedule import Schedule


def test_cosine_goes_from_the_learning_rate_to_zero():
    schedule = Schedule(TrainConfig(lr=0.4, epochs=5), per_epoch=4)
    assert schedule.total == 20
    assert schedule.lr(0) == 0.4
    assert schedule.lr(10) == pytest.approx(0.2)
    assert schedule.lr(20) == pytest.approx(0.0, abs=1e-12)


def test_constant_is_constant():
    schedule = Schedule(TrainConfig(lr=0.4, steps=5, schedule="constant"), per_epoch=4)
    assert {schedule.lr(step) for step in range(6)} == {0.4}


@pytest.mark.parametrize(
    ("rho_schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2]),
        ("linear", [0.2, 0.15, 0.1, 0.0]),
        ("cosine", [0.2, 0.1 + 0.1 * math.cos(math.pi / 4), 0.1, 0.0]),
        ("learning-rate", [0.2, 0.1 + 0.1 * math.cos(math.pi / 4), 0.1, 0.0]),
    ],
)
def test_rho_in_closed_form(rho_schedule, expected):
    schedule = Schedule(TrainConfig(lr=0.4, rho=0.2, steps=20, rho_schedule=rho_schedule), per_epoch=4)
    assert [schedule.rho(step, schedule.lr(step)) for step in (0, 5, 10, 20)] == pytest.approx(expected, abs=1e-12)


def test_rho_counts_the_steps_that_were_taken_and_the_learning_rate_those_of_the_loop():
    linear = Schedule(TrainConfig(lr=0.4, rho=0.2, steps=20, rho_schedule="linear"), per_epoch=4)
    assert linear.rho(taken=5, lr=linear.lr(10)) == pytest.approx(0.15)
    tied = Schedule(TrainConfig(lr=0.4, rho=0.2, steps=20, rho_schedule="learning-rate"), per_epoch=4)
    assert tied.rho(taken=5, lr=tied.lr(10)) == pytest.approx(0.1)


def test_a_method_without_rho_has_none():
    assert Schedule(TrainConfig(method="sgd", lr=0.4, steps=20), per_epoch=4).rho(0, 0.4) is None


@pytest.mark.parametrize(
    ("every", "per_epoch", "expected"),
    [(None, 4, [0, 4, 8]), (None, 1, list(range(12))), (5, 4, [0, 5, 10]), (0, 4, [0])],
)
def test_probes(every, per_epoch, expected):
    schedule = Schedule(TrainConfig(steps=12, probe_every=every), per_epoch)
    assert [step for step in range(12) if schedule.probes(step)] == expected


def test_checkpoints_come_at_the_end_too():
    schedule = Schedule(TrainConfig(steps=12, checkpoint_every=5), 4)
    assert [step for step in range(1, 13) if schedule.saves(step)] == [5, 10, 12]
    assert sum(Schedule(TrainConfig(steps=200), 4).saves(step) for step in range(1, 201)) == 10


def test_a_budget_of_evaluations_is_as_many_steps_as_it_pays_for():
    schedule = Schedule(TrainConfig(lr=0.4, evaluations=100), per_epoch=4, affordable=48)
    assert schedule.total == 48
    assert not schedule.over(47, spent=1e9)
    assert schedule.over(48, spent=0)
    assert schedule.lr(48) == pytest.approx(0, abs=1e-12)


def test_where_the_cost_depends_on_the_data_the_run_ends_when_the_budget_is_spent():
    schedule = Schedule(TrainConfig(lr=0.4, evaluations=100), per_epoch=4)
    assert schedule.is_open
    assert not schedule.over(60, spent=99)
    assert schedule.over(60, spent=101)
    assert schedule.lr(60, spent=50) == pytest.approx(0.2)
    assert schedule.lr(60, spent=101) == pytest.approx(0, abs=1e-12)
    assert schedule.position(60, spent=101) == (100, 100)
