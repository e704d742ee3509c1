"""The claim about margins: the largest margin, the three descents and the rates that are read off them."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from flatwise.experiments.claims.listed import CLAIMS
from flatwise.experiments.claims.margins import DATA, PATHS, largest_margin, lead, margin, measure, power, straightness

PRESET = CLAIMS["margin-by-rescaling"].preset("smoke")


@pytest.mark.parametrize("seed", [100, 101])
def test_the_largest_margin_is_that_of_a_quadratic_program(seed):
    points = DATA["synthetic"](PRESET, seed)
    z = points.numpy()
    sides = {"type": "ineq", "fun": lambda w: z @ w - 1, "jac": lambda w: z}
    start = np.linalg.lstsq(z, np.ones(len(z)), rcond=None)[0]
    found = minimize(lambda w: w @ w / 2, start, jac=lambda w: w, constraints=[sides], method="SLSQP", tol=1e-12)
    assert found.success
    assert largest_margin(points) == pytest.approx(1 / np.linalg.norm(found.x), rel=1e-5)


def test_the_largest_margin_of_two_points_is_known():
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    assert largest_margin(points) == pytest.approx(1.0)
    assert margin(torch.tensor([2.0, 0.0], dtype=torch.float64), points) == pytest.approx(1.0)


def test_data_that_is_not_separable_is_refused():
    with pytest.raises(ValueError, match="not linearly separable"):
        largest_margin(torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64))


@pytest.mark.parametrize("name", list(DATA))
def test_points_are_separable_and_within_distance_one(name):
    points = DATA[name](PRESET, 100)
    assert float(points.norm(dim=1).max()) == pytest.approx(1.0)
    assert 0 < largest_margin(points) < 1


def test_descents_are_those_of_autograd():
    points = DATA["synthetic"](PRESET, 100)
    for name, loss in (("GD", lambda m: (-m).exp().mean()), ("NGD", lambda m: (-m).exp().mean().log())):
        weights = torch.zeros(points.shape[1], dtype=torch.float64)
        for expected in islice(PATHS[name](points, PRESET), 5):
            weights = weights.requires_grad_()
            (slope,) = torch.autograd.grad(loss(points @ weights), weights)
            weights = weights.detach() - PRESET["lr"][name] * slope
            assert torch.allclose(weights, expected)


def test_rescaled_descent_keeps_the_norm_and_leaps():
    points, preset = DATA["synthetic"](PRESET, 100), PRESET | {"warm": 5, "every": 4}
    norms = [float(w.norm()) for w in islice(PATHS["PRGD"](points, preset), 5 + 8)]
    assert norms[5:8] == pytest.approx([norms[4]] * 3)
    assert norms[8:] == pytest.approx([1.2 * norms[4]] * 4 + [1.44 * norms[4]])


def test_rescaled_descent_is_that_of_the_loss_itself():
    """Taking a factor out of the loss changes nothing: the step is along the gradient over the loss."""
    points, preset = DATA["synthetic"](PRESET, 100), PRESET | {"warm": 5, "every": 100}
    warm, first = list(islice(PATHS["PRGD"](points, preset), 6))[-2:]
    reached = warm + preset["lr"]["NGD"] * torch.softmax(-points @ warm, 0) @ points
    assert torch.allclose(first, reached * warm.norm() / reached.norm())


def test_rates_are_read_off():
    steps = [10, 100, 1000, 10000]
    assert power({"steps": steps, "errors": [9.0, 0.1, 0.01, 0.001]}) == pytest.approx(-1)
    path = {"steps": [10, 20, 30, 40], "errors": [1.0, math.e**-2, math.e**-3, math.e**-4]}
    assert straightness(path, warm=10) == pytest.approx(1.0)
    other = {"steps": [10, 30, 90], "errors": [1.0, 1.0, 1.0]}
    assert lead({"PRGD": path, "NGD": other}) == pytest.approx(4 * math.log10(math.e))


def test_all_three_come_nearer_to_the_largest_margin(tmp_path):
    told = []
    found = measure(PRESET, PRESET["cells"][0], 100, tmp_path, lambda done, total: told.append((done, total)))
    for name in PATHS:
        errors = found[name]["errors"]
        assert len(errors) == len(found[name]["steps"])
        assert 0 <= errors[-1] < errors[0]
    assert told == sorted(told)
    assert told[-1] == (300, 300)


def test_each_data_set_decides_by_itself():
    """Rates too slow for half of the seeds on one of them and too fast for the other half have a mean of -1, but no seed is."""

    def path(rate):
        steps = [10**i for i in range(1, 6)]
        return {"steps": steps, "errors": [0.1 * t**rate for t in steps]}

    def cell(rate):
        return {"GD": path(-0.1), "NGD": path(rate), "PRGD": path(-3)}

    seeds = [[cell(-0.5), cell(-1.0)], [cell(-1.0), cell(-1.5)]]
    outcome = CLAIMS["margin-by-rescaling"].judge(PRESET | {"warm": 0}, seeds)
    found = {c.name: c.values for c in outcome.criteria}
    first, second = (found[f"{name}: NGD, power of the step"] for name in DATA)
    assert first == pytest.approx([-0.5, -1.0])
    assert second == pytest.approx([-1.0, -1.5])
