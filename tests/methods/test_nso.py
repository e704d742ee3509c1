"""Noise Stability Optimization: what cancels, and what does not."""

import pytest
import torch
from methods.quadratics import direction
from methods.random_losses import mean_direction

from flatwise.methods import NSO, Evaluation, drive

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
CUBES = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)


def cubic(w):
    return (CUBES * w**3).sum()


@pytest.mark.parametrize("rho", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("samples", [1, 4])
def test_on_a_quadratic_it_is_the_gradient(rho, samples):
    torch.testing.assert_close(direction(NSO(rho=rho, samples=samples), W, H), H @ W)


@pytest.mark.parametrize("clean", [0.0, 0.4])
def test_on_a_cubic_it_adds_half_of_rho_squared_times_the_gradient_of_the_trace(clean):
    """That is exact here, and only the share of the noise in it is random."""
    rho = 0.7
    mean, error = mean_direction(NSO(rho=rho, samples=8, clean=clean), cubic, W, 400)
    expected = 3 * CUBES * (W**2 + (1 - clean) * rho**2)
    assert ((mean - expected).abs() <= 4 * error + 1e-12).all()
    assert (error < 0.05 * rho**2 * 3 * CUBES.abs() + 1e-12).all()


def test_pairs_lie_on_opposite_sides():
    places = []

    def evaluate(at):
        places.append(at.displacement())
        return Evaluation(cubic(W), [W])

    method = NSO(rho=0.1, samples=3)
    state = method.init([W])
    state.weights = [W]
    drive(method, evaluate, state)
    assert len(places) == 6
    for (above,), (below,) in zip(places[::2], places[1::2]):
        assert torch.equal(above, -below)
    assert len({tuple(place[0].tolist()) for place in places}) == 6


@pytest.mark.parametrize(("method", "cost"), [(NSO(), 2), (NSO(samples=3), 6), (NSO(samples=3, clean=0.1), 7)])
def test_its_cost_is_as_claimed(method, cost):
    count = []
    state = method.init([W])
    state.weights = [W]
    drive(method, lambda at: count.append(at) or Evaluation(cubic(W), [W]), state)
    assert len(count) == method.cost == cost
