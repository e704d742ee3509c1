"""GSAM and WSAM: limits, and what is orthogonal to what."""

import functools

import pytest
import torch
from methods.evidence_one import PEERS, from_peer, peers
from methods.quadratics import direction, state_at
from optim.problems import batches, build, count_evaluations, flat, step_by_closure, train

from flatwise.methods import GSAM, SAM, SGD, WSAM, Evaluation, drive

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
G = H @ W
SAMS = direction(SAM(rho=0.3), W, H)


def trained(method, base="sgd"):
    run = build(method, base, dtype=torch.float64)
    train(run, batches(10, dtype=torch.float64))
    return flat(run.params)


def test_gsam_without_alpha_is_sam():
    torch.testing.assert_close(trained(GSAM(rho=0.1, alpha=0.0)), trained(SAM(rho=0.1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 3.0])
def test_gsam_keeps_the_component_along_sams_gradient(alpha):
    """What is taken off is orthogonal to it, so that the perturbed loss falls as fast as with SAM, to first order."""
    taken = direction(GSAM(rho=0.3, alpha=alpha), W, H) - SAMS
    assert abs(taken @ SAMS).item() < 1e-12 * SAMS.norm() ** 2
    assert taken.norm() > 0.05 * alpha


@pytest.mark.parametrize("alpha", [0.1, 0.4, 3.0])
def test_gsam_ascends_the_part_of_the_gradient_that_is_orthogonal(alpha):
    orthogonal = G - (G @ SAMS) / (SAMS @ SAMS) * SAMS
    found = direction(GSAM(rho=0.3, alpha=alpha), W, H)
    torch.testing.assert_close(found @ orthogonal, -alpha * orthogonal @ orthogonal)


def test_gsam_along_an_eigenvector_is_sam():
    """There both gradients are parallel, and nothing is orthogonal."""
    w = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(direction(GSAM(rho=0.3, alpha=2.0), w, H), direction(SAM(rho=0.3), w, H))


def curved(w):
    return (w**4).sum() / 4 + torch.sin(w[0] * w[1]) + w[2] * w[1] + w @ H @ w / 2


def evaluate(at):
    place = W if at.displacement() is None else W + at.displacement()[0]
    w = place.clone().requires_grad_()
    (g,) = torch.autograd.grad(curved(w), w)
    return Evaluation(curved(place), [g])


def gap(w, rho=0.1):
    """The surrogate gap f(w + rho g / |g|) - f(w)."""
    v = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(curved(v), v)
    return (curved(w + rho * g / g.norm()) - curved(w)).item()


def test_a_small_step_of_gsam_narrows_the_gap_more_than_sams():
    after = [gap(W - 1e-4 * drive(method, evaluate, state_at(method, W))[0]) for method in (GSAM(0.1, 1.0), SAM(0.1))]
    assert after[0] < after[1] - 1e-6


def test_wsam_with_a_half_is_sam():
    torch.testing.assert_close(trained(WSAM(rho=0.1, gamma=0.5)), trained(SAM(rho=0.1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_wsam_without_weight_is_the_base_optimizer_at_its_cost(base):
    method = WSAM(rho=0.1, gamma=0.0)
    assert torch.equal(trained(method, base), trained(SGD(), base))
    assert method.cost == 1
    assert count_evaluations(build(method), step_by_closure, batches(1)[0]) == 1


@pytest.mark.parametrize("gamma", [0.2, 0.9, 0.99])
def test_wsam_weighs_the_sharpness(gamma):
    expected = G + gamma / (1 - gamma) * (SAMS - G)
    torch.testing.assert_close(direction(WSAM(rho=0.3, gamma=gamma), W, H), expected)


@pytest.mark.parametrize("gamma", [1.0, 1.5, -0.1, float("nan"), None, "0.9"])
def test_the_weight_of_wsam_is_below_one(gamma):
    with pytest.raises((ValueError, TypeError), match="gamma"):
        WSAM(gamma=gamma)


def test_without_momentum_the_decoupled_form_is_the_same():
    """The one of the paper's experiments, as pytorch_optimizer has it."""
    plain = {"lr": 0.1}
    decoupled = functools.partial(peers.wsam, base=plain, rho=0.1, gamma=0.7, decouple=True)
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)
    assert from_peer(WSAM(rho=0.1, gamma=0.7), decoupled, base=sgd) < PEERS


def test_with_momentum_it_is_another():
    decoupled = functools.partial(peers.wsam, rho=0.1, gamma=0.7, decouple=True)
    assert from_peer(WSAM(rho=0.1, gamma=0.7), decoupled) > 1e-3
