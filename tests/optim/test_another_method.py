"""Another method takes over between two steps."""

import pytest
import torch
from optim.problems import batches, build, flat, loss_of, train

from flatwise import methods, schedules

RHO = 0.1


@pytest.mark.parametrize("name", [name for name in methods.names() if name not in ("dom-sgd", "bulk-sgd")])
def test_any_method_takes_over_from_sam_and_hands_back(name):
    """But the two that need an eigenspace, which has no name."""
    method = methods.by_name(name)
    run = build(methods.SAM(rho=RHO))
    for taking_over in (method, methods.SAM(rho=RHO)):
        train(run, batches(2))
        before = flat(run.params)
        run.opt.method = taking_over
        train(run, batches(2))
        assert run.opt.method is taking_over
        assert not torch.equal(flat(run.params), before)
        assert torch.isfinite(flat(run.params)).all()


def test_one_that_takes_over_counts_steps_on_and_else_starts_anew():
    run = build(methods.FriendlySAM(rho=RHO))
    train(run, batches(3))
    run.opt.method = methods.Late(methods.SAM(rho=RHO), start=4)
    evaluations = []
    for batch in batches(3):
        train(run, [batch])
        evaluations.append(run.opt.diagnostics["evaluations"])
    assert evaluations == [1, 2, 2]
    run.opt.method = methods.FriendlySAM(rho=RHO)
    assert not any(entry["flatwise.mean_gradient"].any() for entry in run.opt.state_dict()["state"].values())


def test_another_rho_leaves_what_is_remembered():
    run, other = build(methods.FriendlySAM(rho=RHO)), build(methods.FriendlySAM(rho=RHO))
    for one in (run, other):
        train(one, batches(3))
    run.opt.method = methods.FriendlySAM(rho=0.0001)
    run.opt.method = methods.FriendlySAM(rho=RHO)
    for one in (run, other):
        train(one, batches(6)[3:])
    assert torch.equal(flat(run.params), flat(other.params))


@pytest.mark.parametrize(
    ("method", "schedule", "message"),
    [
        (0.05, None, "method must be one of flatwise.methods, got a float"),
        (methods.MomentumSAM(), None, "momentum"),
        (methods.SGD(), schedules.Linear(1.0, 0.0, 10), "rho_schedule has no effect: the method SGD has no rho"),
    ],
)
def test_one_that_does_not_go_with_the_rest_is_refused_and_nothing_changes(method, schedule, message):
    plain = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    run = build(methods.SAM(rho=RHO), base=plain, rho_schedule=schedule)
    before = run.opt.method
    with pytest.raises((TypeError, ValueError), match=message):
        run.opt.method = method
    assert run.opt.method is before
    train(run, batches(1))


def test_weights_are_back_where_it_takes_over_in_the_midst_of_a_step():
    run = build(methods.SAM(rho=RHO))
    (batch,) = batches(1)
    before, passes = flat(run.params), run.opt.passes()
    for p in passes:
        if not p.at_weights:
            break
        p.backward(loss_of(run.model, batch))
    assert not torch.equal(flat(run.params), before)
    run.opt.method = methods.SGD()
    assert torch.equal(flat(run.params), before)
    train(run, [batch])
