"""The universal class: samplers, and that each method descends the function of the Hessian that it is named after."""

from dataclasses import replace

import pytest
import torch
from methods.quadratics import evaluate_around, state_at
from methods.random_losses import evaluate_with, mean_direction

from flatwise.methods import DetSAM, Evaluation, FrobSAM, TraceSAM, drive

SPECTRUM = torch.tensor([4.0, 2.0, 1.0, -0.5], dtype=torch.float64)
HEIGHT = 0.3
MINIMUM = torch.tensor([0.0, 0.0, 0.0, 0.0, HEIGHT], dtype=torch.float64)


def scaled_bowl(w):
    """`exp(z) x'Hx / 2`, whose gradient vanishes at x = 0: only a measure of the Hessian can move z there."""
    return torch.exp(w[4]) * (SPECTRUM * w[:4] ** 2).sum() / 2


def offsets(method, steps=1, w=MINIMUM):
    """All displacements of some steps, as rows."""
    places, evaluate = [], evaluate_with(scaled_bowl, w)

    def record(at):
        if at.vector is not None:
            places.append(at.displacement()[0])
        return evaluate(at)

    for step in range(steps):
        drive(method, record, state_at(method, w, step))
    return torch.stack(places)


# --- samplers ---------------------------------------------------------------------------------------------------------


def test_trace_sams_points_are_uniform_on_the_sphere():
    t = offsets(TraceSAM(rho=2.0, samples=20), steps=100) / 2.0
    n, d = t.shape
    torch.testing.assert_close(t.norm(dim=1), torch.ones(n, dtype=t.dtype))
    assert t.mean(dim=0).abs().max() < 4 * (1 / d / n) ** 0.5
    assert (t.T @ t / n - torch.eye(d, dtype=t.dtype) / d).abs().max() < 4 * (3 / d / (d + 2) / n) ** 0.5


def test_det_sams_points_are_uniform_in_the_cube():
    t = offsets(DetSAM(rho=2.0, half_width=0.1, samples=20), steps=100) / 0.2
    n, d = t.shape
    assert t.abs().max() <= 1
    assert (t.T @ t / n - torch.eye(d, dtype=t.dtype) / 3).abs().max() < 4 * (1 / 5 / n) ** 0.5
    shares = torch.stack([(t < edge).double().mean(dim=0) for edge in (-0.5, 0.0, 0.5)])
    assert (shares - torch.tensor([[0.25], [0.5], [0.75]])).abs().max() < 4 * (0.25 / n) ** 0.5


def test_frob_sams_points_are_normal():
    t = offsets(FrobSAM(rho=0.5, samples=20), steps=100) / 0.5
    n, d = t.shape
    assert (t.T @ t / n - torch.eye(d, dtype=t.dtype)).abs().max() < 4 * (2 / n) ** 0.5
    assert ((t**4).mean(dim=0) - 3).abs().max() < 4 * (96 / n) ** 0.5


# --- what is descended ------------------------------------------------------------------------------------------------


def test_trace_sam_descends_the_mean_eigenvalue():
    """`strength * rho^2 / 2` times the mean eigenvalue; z takes part, but its own curvature is zero there."""
    rho, strength = 0.01, 0.7
    mean, error = mean_direction(TraceSAM(rho=rho, strength=strength, samples=20), scaled_bowl, MINIMUM, 150)
    expected = strength * rho**2 / 2 * torch.exp(MINIMUM[4]) * SPECTRUM.sum() / 5
    assert error[4] < 0.05 * expected
    assert (mean[4] - expected).abs() < 4 * error[4]
    assert (mean[:4].abs() < 4 * error[:4]).all()


def test_frob_sam_descends_the_squared_frobenius_norm():
    """`strength * rho^2 / 4` times it, where the gradient is zero."""
    rho, strength = 0.01, 0.7
    mean, error = mean_direction(FrobSAM(rho=rho, strength=strength, samples=20), scaled_bowl, MINIMUM, 400)
    expected = strength * rho**2 / 4 * 2 * torch.exp(2 * MINIMUM[4]) * (SPECTRUM**2).sum()
    assert error[4] < 0.05 * expected
    assert (mean[4] - expected).abs() < 4 * error[4]


def test_det_sam_descends_the_trace_in_a_small_cube():
    """There `phi` of the mean is 1 + half_width^2 / 6 times the trace, to first order."""
    rho, strength, half_width = 0.01, 0.7, 0.01
    method = DetSAM(rho=rho, strength=strength, half_width=half_width, samples=20)
    mean, error = mean_direction(method, scaled_bowl, MINIMUM, 150)
    expected = strength * rho**2 * half_width**2 / 6 * torch.exp(MINIMUM[4]) * SPECTRUM.sum()
    assert error[4] < 0.05 * expected
    assert (mean[4] - expected).abs() < 4 * error[4] + 1e-3 * expected


def test_det_sams_mean_of_psi_is_the_root_of_one_over_the_determinant():
    """Over the whole space, of `exp(-t'Ht / 4)`: a Gaussian integral, here over a cube that is wide enough."""
    half_width, h = 8.0, torch.tensor([2.0, 3.0], dtype=torch.float64)
    t = offsets(DetSAM(rho=1.0, half_width=half_width, samples=50), 80, torch.zeros(5, dtype=torch.float64))
    psi = torch.exp(-(h * t[:, :2] ** 2).sum(dim=1) / 4) * (2 * half_width) ** 2
    expected = 4 * torch.pi / (h.prod()) ** 0.5
    assert (psi.mean() - expected).abs() < 4 * psi.std() / len(psi) ** 0.5


def test_strength_one_of_trace_sam_is_the_mean_of_the_perturbed_gradients():
    w, gradients = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64), []
    evaluate = evaluate_with(scaled_bowl, w)

    def record(at):
        answer = evaluate(at)
        gradients.append((at.vector is None, answer.gradient[0].clone()))
        return answer

    method = TraceSAM(rho=0.3, strength=1.0, samples=4)
    found = drive(method, record, state_at(method, w))[0]
    torch.testing.assert_close(found, torch.stack([g for is_here, g in gradients if not is_here]).mean(dim=0))


# --- losses, costs, errors --------------------------------------------------------------------------------------------

EACH = [TraceSAM(rho=0.3, samples=3), DetSAM(rho=0.3, samples=3), FrobSAM(rho=0.3, strength=0.5, samples=3)]
each = pytest.mark.parametrize("method", EACH, ids=lambda method: type(method).__name__)


@each
def test_a_constant_added_to_the_loss_changes_nothing(method):
    h, w = torch.diag(SPECTRUM), torch.tensor([0.3, -1.0, 0.7, 2.0], dtype=torch.float64)
    evaluate = evaluate_around(w, h)

    def shifted(at):
        answer = evaluate(at)
        return Evaluation(answer.loss + 2.0**20, answer.gradient)

    found = drive(method, shifted, state_at(method, w))[0]
    torch.testing.assert_close(found, drive(method, evaluate, state_at(method, w))[0], rtol=1e-6, atol=1e-6)


@each
def test_its_cost_is_as_claimed(method):
    requests, evaluate = [], evaluate_with(scaled_bowl, MINIMUM)
    drive(method, lambda at: requests.append(at) or evaluate(at), state_at(method, MINIMUM))
    assert len(requests) == method.cost == 4


@each
def test_strength_zero_is_the_base_optimizer_at_its_cost(method):
    alone, requests, evaluate = replace(method, strength=0.0), [], evaluate_with(scaled_bowl, MINIMUM)
    found = drive(alone, lambda at: requests.append(at) or evaluate(at), state_at(alone, MINIMUM))[0]
    assert torch.equal(found, evaluate(requests[0]).gradient[0])
    assert len(requests) == alone.cost == 1


def test_the_variance_of_one_loss_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        FrobSAM(samples=1)


def test_a_cube_without_width_is_refused():
    with pytest.raises(ValueError, match="half_width must be above 0"):
        DetSAM(half_width=0.0)
