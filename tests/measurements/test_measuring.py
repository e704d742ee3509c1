import itertools
import math

import pytest
import torch
from torch import nn

import flatwise as fw
from flatwise.measurements import Plan, Subject, expense, measure

PLAN = Plan(what=("eigenvalues", "trace", "density", "landscape"), probes=2, steps=10, trace_samples=10, points=5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 3))


def subject(model=None, mode="eval"):
    torch.manual_seed(1)
    batches = [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (12, 7)]
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    return Subject(fw.Objective(model or network(), loss, batches, mode=mode), {"function": "mine:f"}, 7)


def but_for_time(value):
    times = {"seconds", "gradients", "gradient_seconds", "set_up_seconds"}
    if isinstance(value, dict):
        return {name: but_for_time(entry) for name, entry in value.items() if name not in times}
    return value


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_measuring_changes_nothing(mode):
    model = network()
    measured = subject(model, mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    measure(measured, PLAN)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_every_quantity_is_kept_as_soon_as_it_is_there():
    kept = []
    found = measure(subject(), PLAN, keep=lambda now: kept.append(list(now)))
    assert [sum(name in now for name in PLAN.what) for now in kept] == [0, 1, 2, 3, 4, 4]
    assert found["complete"] is True
    assert (found["step"], found["record"]["step"], found["landscape"]["record"]["step"]) == (7, 7, 7)


def test_what_was_measured_before_is_not_measured_again():
    whole = measure(subject(), PLAN)
    half = {name: value for name, value in whole.items() if name not in ("density", "landscape")}
    half |= {"complete": False, "trace": {"value": "untouched"}}
    rest = measure(subject(), PLAN, before=half)
    assert rest["trace"] == {"value": "untouched"}
    assert but_for_time(rest["density"]) == but_for_time(whole["density"])
    assert but_for_time(rest["landscape"])["losses"] == whole["landscape"]["losses"]


def test_the_slice_goes_uphill_along_the_top_eigenvector():
    found = measure(subject(), Plan(what=("eigenvalues", "landscape"), tol=1e-4, points=21, reach=0.01))
    lengths, losses = found["landscape"]["lengths"], found["landscape"]["losses"]
    assert (lengths[0], lengths[-1], lengths[10]) == pytest.approx((-0.01, 0.01, 0.0), abs=1e-15)
    assert losses[10] == pytest.approx(found["loss"])
    assert losses[-1] > losses[0]


def test_the_plane_is_that_of_the_top_two():
    plan = Plan(what=("landscape",), landscape="plane", points=3)
    found = measure(subject(), plan)["landscape"]
    assert (found["kind"], len(found["losses"]), len(found["losses"][0])) == ("plane", 3, 3)
    assert found["losses"][1][1] == pytest.approx(measure(subject(), plan)["loss"])


def test_where_the_loss_is_not_finite_there_is_a_reason_and_nothing_else():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    found = measure(subject(model), PLAN)
    assert found["complete"] is True
    assert found["reason"] == "the loss is nan, so there is no curvature to measure"
    assert not set(PLAN.what) & found.keys()


def test_what_did_not_converge_is_said():
    found = measure(subject(), Plan(what=("eigenvalues",), top=30, lowest=0, tol=1e-9))
    assert found["eigenvalues"]["converged"] in (True, False)
    assert bool(found["warnings"]) is not found["eigenvalues"]["converged"]


def test_progress_goes_to_the_end_and_never_beyond():
    told = []
    measure(subject(), PLAN, progress=lambda done, total: told.append((done, total)))
    assert len({total for _, total in told}) == 1
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(told))
    assert told[-1][0] <= told[-1][1]


def test_the_expense_counts_products_before_any_is_taken():
    cost = expense(subject(), PLAN)
    assert (cost.samples, cost.parameters, cost.micro_batch) == (19, 63, None)
    assert (cost.products["trace"], cost.products["density"]) == (10, 20)
    assert cost.seconds > 0
    assert cost.memory > 63 * 4
    assert "19 samples, 63 parameters" in str(cost)
    small = expense(subject(), Plan(what=("trace",), max_memory=str(cost.memory)))
    assert sum(small.products.values()) == 30
