"""Bands over seeds and straight lines through points."""

import numpy as np
import pytest

from flatwise.experiments.claims.lines import band, fit


def test_a_band_is_the_mean_and_the_range():
    line = band("loss", [1, 2], [[1.0, 5.0], [3.0, 1.0]])
    assert (line.label, line.x, line.y, line.low, line.high) == ("loss", [1, 2], [2.0, 3.0], [1.0, 1.0], [3.0, 5.0])


def test_a_band_ends_where_the_shortest_curve_does():
    line = band("loss", [1, 2, 3], [[1.0, 2.0, 3.0], [3.0, 4.0]])
    assert line.x == [1, 2]
    assert line.y == [2.0, 3.0]


def test_a_fit_is_that_of_least_squares():
    x, y = [0.0, 1.0, 2.0, 4.0], [1.0, 0.5, 3.0, 2.0]
    slope, share = fit(x, y)
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert share == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_a_constant_explains_nothing():
    assert fit([1.0, 2.0], [3.0, 3.0]) == (0.0, 0.0)
