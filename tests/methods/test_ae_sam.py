"""AE-SAM: when it takes a second evaluation."""

import math

import pytest
import torch
from methods.evidence import loss_on
from methods.quadratics import state_at
from optim.problems import BASES, assert_same, batches, build, count_evaluations, flat, mlp, snapshot, train
from optim.problems import step_by_closure as by_closure
from reference import family_one

from flatwise.methods import AESAM, SAM, Evaluation, drive


def evaluations(method, norms):
    """How many each step takes, where the gradients have these norms."""
    w = torch.zeros(1, dtype=torch.float64)
    state, counts = state_at(method, w), []
    for step, norm in enumerate(norms):
        state.step = step
        places = Places(torch.tensor([norm], dtype=torch.float64))
        drive(method, places, state)
        counts.append(places.count)
    return counts, state


class Places:
    """The same gradient everywhere; counts how often it is asked for."""

    def __init__(self, gradient):
        self.gradient, self.count = gradient, 0

    def __call__(self, at):
        self.count += 1
        return Evaluation(self.gradient[0], [self.gradient.clone()])


def test_decisions_made_by_hand():
    """With decay 1/2 and c = 1 throughout: the squares 1, 4, 4, 1, 9.

    Means 1, 2.5, 3.25, 2.125, 5.5625. Variances 0, 1.125, 0.84375, 1.0546875, 6.435546875.
    Thresholds 1, 3.561, 4.169, 3.152, 8.099.
    """
    method = AESAM(rho=0.1, start=1.0, end=1.0, decay=0.5)
    counts, state = evaluations(method, [1.0, 2.0, 2.0, 1.0, 3.0])
    assert counts == [2, 2, 1, 1, 2]
    assert state.numbers == {"mean_of_squares": 5.5625, "variance_of_squares": 6.435546875}


def test_the_threshold_falls_in_a_straight_line():
    """Squares alternate between 1 and 9, mean 5 and deviation 3.8: the large ones are SAM's for c below 1, all below -1."""
    method = AESAM(rho=0.1, steps=400, start=1.5, end=-1.5, decay=0.9)
    counts, _ = evaluations(method, [1.0, 3.0] * 200)
    assert counts[30:50] == [1] * 20  # c from 1.275 to 1.125
    assert counts[100:300] == [1, 2] * 100  # c from 0.75 to -0.75
    assert counts[380:] == [2] * 20  # c below -1.35


def test_from_steps_on_the_threshold_is_constant():
    early, late = (AESAM(rho=0.1, steps=1, start=s, end=0.0, decay=0.9) for s in (-5.0, 5.0))
    norms = [1.0, 2.0, 1.0, 1.5, 3.0, 1.0]
    assert evaluations(early, norms)[0][1:] == evaluations(late, norms)[0][1:]


def test_the_evaluations_of_a_run_are_those_of_the_transcription():
    data, hyper = batches(50, dtype=torch.float64), {"rho": 0.1, "steps": 50, "start": 1.0, "end": -1.0, "decay": 0.9}
    run = build(AESAM(**hyper), dtype=torch.float64)
    counts = [count_evaluations(run, by_closure, batch) for batch in data]
    model = mlp(torch.float64)
    params = list(model.parameters())
    expected = family_one.ae_sam(params, BASES["sgd"](params), [loss_on(model, batch) for batch in data], **hyper)
    assert counts == expected
    assert sum(counts[:25]) < sum(counts[25:])
    assert 50 < sum(counts) < 100


def test_a_step_that_is_large_is_sams():
    run, sam = build(AESAM(rho=0.1, start=-1e6, end=-1e6)), build(SAM(rho=0.1))
    train(run, batches(5))
    train(sam, batches(5))
    assert torch.equal(flat(run.params), flat(sam.params))


def test_resuming_is_bitwise():
    data = batches(12, dtype=torch.float64)
    whole, resumed = (build(AESAM(rho=0.1, steps=12), dtype=torch.float64) for _ in range(2))
    train(whole, data[:5])
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.opt.load_state_dict(whole.opt.state_dict())
    train(whole, data[5:])
    train(resumed, data[5:])
    assert_same(snapshot(resumed), snapshot(whole))


def test_a_gradient_that_is_not_finite_does_not_spoil_the_means():
    run = build(AESAM(rho=0.1), dtype=torch.float64)
    good, other = batches(2, dtype=torch.float64)
    by_closure(run, good)
    before = run.opt.state_dict()["state"][0]
    by_closure(run, (torch.full_like(other[0], math.nan), other[1]))
    after = run.opt.state_dict()["state"][0]
    assert run.opt.diagnostics["skipped"] == 1
    ours = [key for key in before if key.startswith("flatwise.")]
    assert_same(
        {key: after[key] for key in ours if "skipped" not in key}, {k: before[k] for k in ours if "skipped" not in k}
    )


def test_a_dialogue_for_each_part_cannot_be_had():
    run = build(AESAM(rho=0.1))
    with pytest.raises(ValueError, match="adaptive"):
        run.opt.passes(parts=2, each=True)


def test_its_cost_is_not_known_before():
    assert AESAM().cost is None
    assert AESAM(rho=0.0).cost == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("steps", 1.5), ("start", math.inf), ("end", None), ("decay", 1.0), ("decay", -0.1)],
)
def test_arguments_out_of_range_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        AESAM(**{name: value})
