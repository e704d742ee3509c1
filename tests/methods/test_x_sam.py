"""X-SAM: what it does to the component along the eigenvector, whatever the vector's sign."""

import pytest
import torch
from methods.quadratics import direction, evaluate_around
from optim.problems import (
    assert_same,
    batches,
    build,
    count_evaluations,
    flat,
    loss_of,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)
from reference import transcriptions

from flatwise.methods import SAM, XSAM, drive

RHO = 0.3
H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
SAMS = direction(SAM(rho=RHO), W, H)
V = torch.tensor([0.6, 0.0, 0.0, 0.8, 0.0], dtype=torch.float64)


def given(vector, alpha, w=W):
    """The direction for an eigenvector that is given."""
    return direction(XSAM(rho=RHO, alpha=alpha, source=lambda known, weights: [[vector]]), w, H)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
@pytest.mark.parametrize("w", [W, -W], ids=["along", "against"])
def test_the_component_along_the_vector_becomes_one_minus_alpha_of_what_it_was(alpha, w):
    sams = direction(SAM(rho=RHO), w, H)
    found = given(V, alpha, w)
    torch.testing.assert_close(found @ V, (1 - alpha) * (sams @ V))
    torch.testing.assert_close(found - (found @ V) * V, sams - (sams @ V) * V)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_the_sign_of_the_vector_does_not_matter(alpha):
    assert torch.equal(given(V, alpha), given(-V, alpha))


def test_the_published_rule_is_this_one_for_a_vector_that_agrees_with_the_gradient():
    """h - alpha |<h, v>| v; for the opposite vector it amplifies what it should damp."""
    published = lambda v: SAMS - 0.2 * (SAMS @ v).abs() * v
    agreeing = V * torch.sign(SAMS @ V)
    torch.testing.assert_close(given(V, 0.2), published(agreeing))
    assert abs(published(-agreeing) @ V).item() > abs(SAMS @ V).item() > abs(given(V, 0.2) @ V).item()


def test_without_alpha_it_is_sam_at_its_cost():
    run, sam = build(XSAM(rho=RHO, alpha=0.0)), build(SAM(rho=RHO))
    train(run, batches(5))
    train(sam, batches(5))
    assert torch.equal(flat(run.params), flat(sam.params))
    assert XSAM(alpha=0.0).cost == 2
    assert count_evaluations(run, step_by_closure, batches(1)[0]) == 2


def test_its_evaluations_are_those_it_promises():
    """Two a step, and the products of a refresh; once one more to see that evaluation mode makes no difference here."""
    method = XSAM(rho=RHO, every=4, iterations=3)
    run = build(method)
    counts = [count_evaluations(run, step_by_closure, batch) for batch in batches(8)]
    assert counts == [6, 2, 2, 2, 5, 2, 2, 2]
    assert method.cost == 2 + 3 / 4


@pytest.mark.parametrize("source", ["ritz", "power"])
def test_the_vector_is_the_top_eigenvector_of_the_batch(source):
    """Alpha 1 then leaves next to nothing of SAM's gradient along the exact one."""
    run, sam = (
        build(method, dtype=torch.float64)
        for method in (XSAM(rho=0.05, alpha=1.0, every=1, iterations=60, source=source), SAM(rho=0.05))
    )
    batch = batches(1, dtype=torch.float64)[0]
    for each in (run, sam):
        for p in each.opt.passes():
            p.backward(loss_of(each.model, batch))
    _, v = transcriptions.top_eigenvector(lambda: loss_of(sam.model, batch), sam.params)
    of_sam, found = (flat([p.grad for p in each.params]) @ v for each in (sam, run))
    assert of_sam.abs() > 0.05
    assert found.abs() < 0.05 * of_sam.abs()


def test_a_zero_vector_changes_nothing():
    torch.testing.assert_close(given(torch.zeros_like(V), 1.0), SAMS)


def test_groups_without_a_radius_take_sams_gradient():
    groups = lambda model: [
        {"params": list(model[0].parameters()), "rho": 0.0},
        {"params": list(model[2].parameters())},
    ]
    batch = batches(1, dtype=torch.float64)[0]
    found = []
    for method in (XSAM(rho=RHO, alpha=1.0), SAM(rho=RHO)):
        run = build(method, dtype=torch.float64, groups=groups)
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
        found.append([p.grad for p in run.params])
    assert torch.equal(flat(found[0][:2]), flat(found[1][:2]))
    assert (flat(found[0][2:]) - flat(found[1][2:])).abs().max() > 1e-3


def test_a_parameter_that_is_not_used_stays_without_gradient():
    w, none = W, None
    method = XSAM(rho=RHO, alpha=0.5)
    state = method.init([w, torch.ones(2, dtype=torch.float64)])
    state.weights = [w, torch.ones(2, dtype=torch.float64)]
    inner = evaluate_around(w, H)

    def evaluate(at):
        answer = inner(at)
        return type(answer)(answer.loss, [answer.gradient[0], none])

    found = drive(method, evaluate, state)
    assert found[1] is None
    assert torch.isfinite(found[0]).all()


@pytest.mark.parametrize("when", [3, 5])
def test_resuming_is_bitwise(when):
    data = batches(8, dtype=torch.float64)
    method = XSAM(rho=RHO, alpha=0.5, every=4, iterations=2)
    whole, resumed = (build(method, dtype=torch.float64) for _ in range(2))
    train(whole, data[:when], step_by_passes)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.opt.load_state_dict(whole.opt.state_dict())
    train(whole, data[when:], step_by_passes)
    train(resumed, data[when:], step_by_passes)
    assert_same(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("value", [-0.1, float("nan"), None, "0.2"])
def test_alpha_must_be_a_number_not_below_zero(value):
    with pytest.raises((ValueError, TypeError), match="alpha"):
        XSAM(alpha=value)
