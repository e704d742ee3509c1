"""The parabola at 0: from unevenly spaced points too, and only where it can be known."""

import math

import pytest

from flatwise.landscape.parabola import fitted


def quartic(x):
    return 1 + 2 * x - 3 * x**2 + 0.5 * x**3 - 0.25 * x**4


@pytest.mark.parametrize(
    "xs", [[-0.2, -0.1, 0.0, 0.1, 0.2], [-1.0, -0.3, 0.05, 0.2, 0.7], [-0.4, -0.3, -0.2, -0.1, 0.3]]
)
def test_five_points_know_a_polynomial_of_degree_four(xs):
    curve = fitted(xs, [quartic(x) for x in xs])
    assert (curve.value, curve.slope, curve.curvature) == pytest.approx((1, 2, -6))
    assert curve.at(0.5) == pytest.approx(1 + 1 - 0.75)


def test_three_points_know_a_parabola():
    curve = fitted([-1.0, 0.0, 2.0], [3.0, 1.0, 3.0])
    assert (curve.value, curve.slope, curve.curvature) == pytest.approx((1, -1, 2))
    assert math.isnan(curve.error)


def test_points_too_far_apart_have_a_large_error():
    near, far = (
        fitted([h * i for i in range(-2, 3)], [math.cos(4 * h * i) for i in range(-2, 3)]) for h in (0.02, 0.4)
    )
    assert near.error < 0.03 * abs(near.curvature)
    assert far.error > 0.1 * abs(far.curvature)
    assert abs(near.curvature + 16) < near.error


def test_points_that_are_not_finite_do_not_count():
    xs = [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    losses = [math.nan if x == 0.1 else quartic(x) for x in xs]
    assert fitted(xs, losses).curvature == pytest.approx(-6)


@pytest.mark.parametrize(
    ("xs", "losses"),
    [
        ([-1.0, 1.0], [1.0, 1.0]),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
        ([-1.0, 0.0, 1.0], [math.inf, 0.0, 1.0]),
        ([], []),
    ],
)
def test_without_three_points_around_zero_there_is_none(xs, losses):
    assert fitted(xs, losses) is None
