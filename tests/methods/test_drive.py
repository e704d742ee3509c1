"""The methods against closed forms in float64, driven by a pure function instead of the optimizer."""

import pytest
import torch
from methods.cases import EVERY, every_listed_displacing_method, parametrized
from methods.quadratics import direction, evaluate_around, state_at

from flatwise import methods
from flatwise.methods import Evaluation, drive

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
G = H @ W
UNIT = G / G.norm()


def test_sgd_returns_the_gradient():
    assert torch.equal(direction(methods.SGD(), W, H), G)


def test_sam_on_a_quadratic():
    torch.testing.assert_close(direction(methods.SAM(rho=0.3), W, H), H @ (W + 0.3 * UNIT))


def test_reverse_sam_on_a_quadratic():
    torch.testing.assert_close(direction(methods.ReverseSAM(rho=0.3), W, H), H @ (W - 0.3 * UNIT))


def test_gradient_norm_on_a_quadratic():
    torch.testing.assert_close(direction(methods.GradientNorm(rho=0.3), W, H), G + 0.3 * H @ UNIT, rtol=1e-6, atol=1e-6)


@every_listed_displacing_method
def test_without_rho_the_direction_is_the_gradient_after_one_evaluation(case):
    places = []
    evaluate = evaluate_around(W, H)
    method = case.with_rho(0.0)
    found = drive(method, lambda at: places.append(at) or evaluate(at), state_at(method, W))
    assert torch.equal(found[0], G)
    assert len(places) == 1


@every_listed_displacing_method
def test_a_zero_gradient_is_not_a_nan(case):
    found = direction(case.method, torch.zeros(5, dtype=torch.float64), H)
    assert torch.isfinite(found).all()
    assert hasattr(case.method, "seed") or torch.equal(found, torch.zeros(5, dtype=torch.float64))


@parametrized([case for case in EVERY if case.transcription])
def test_directions_agree_with_the_transcription_on_a_curved_loss(case):
    w = torch.tensor([0.4, -0.9, 1.3], dtype=torch.float64, requires_grad=True)
    loss = lambda: (w**4).sum() / 4 + torch.sin(w[0] * w[1]) + w[2] * w[1]

    def evaluate(at):
        displacement = at.displacement()
        start = w.detach().clone()
        with torch.no_grad():
            w.copy_(start if displacement is None else start + displacement[0])
        value = loss()
        (g,) = torch.autograd.grad(value, [w])
        with torch.no_grad():
            w.copy_(start)
        return Evaluation(value.detach(), [g])

    found = drive(case.method, evaluate, state_at(case.method, w.detach().clone()))
    torch.testing.assert_close(found[0], case.transcription(loss, [w])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("lr", "rho", "h", "amplitude"), [(0.1, 0.1, 10.0, 0.1), (0.1, 0.1, 12.0, 0.15)])
def test_sam_in_one_dimension_ends_in_the_known_two_cycle(lr, rho, h, amplitude):
    """|w| = lr h rho / (2 - lr h), where h is exactly SAM's edge (arXiv 2309.12488)."""
    w, h = torch.tensor([0.37], dtype=torch.float64), torch.tensor([[h]], dtype=torch.float64)
    for _ in range(500):
        w = w - lr * direction(methods.SAM(rho=rho), w, h)
    after = w - lr * direction(methods.SAM(rho=rho), w, h)
    torch.testing.assert_close(w.abs().item(), amplitude, rtol=1e-9, atol=0)
    torch.testing.assert_close(after, -w, rtol=1e-9, atol=0)


def test_drive_leaves_the_step_count_to_the_caller():
    method = methods.SAM()
    state = state_at(method, W, step=7)
    drive(method, evaluate_around(W, H), state)
    assert state.step == 7


def test_none_stays_none():
    method = methods.SAM(rho=0.3)
    state = method.init([W, None])
    state.weights = [W, None]

    def evaluate(at):
        displacement = at.displacement()
        w = W if displacement is None else W + displacement[0]
        assert displacement is None or displacement[1] is None
        return Evaluation(0.5 * w @ H @ w, [H @ w, None])

    found = drive(method, evaluate, state)
    torch.testing.assert_close(found[0], H @ (W + 0.3 * UNIT))
    assert found[1] is None
