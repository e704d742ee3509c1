"""The study of rho and alpha: who chooses, and that nobody chooses by what they are judged by."""

import math
import random
from dataclasses import asdict

import pytest

from flatwise.experiments.claims.grids import (
    RHO_ALPHA_STUDY,
    best_alpha,
    best_eigen_sam,
    best_sam,
    field,
    gains,
    judge,
    measure,
)
from flatwise.report.verdicts import judged, verdict_of
from flatwise.statistics import mean_interval

CELL = {"name": "one", "rhos": [0.1, 0.2], "alphas": [0.0, 0.5, 1.0]}
PLACES = [(rho, alpha) for rho in CELL["rhos"] for alpha in CELL["alphas"]]


def points(arm):
    return 100 * arm["summary"]["test_accuracy"]


def grid(*accuracies, top=None):
    """What a seed measured: accuracies in the order of `PLACES`, in per cent."""
    tops = top or [1.0] * len(PLACES)
    values = zip(PLACES, accuracies, tops, strict=True)
    return {field(*place): {"summary": {"test_accuracy": a / 100, "top_eigenvalue": t}} for place, a, t in values}


FOUND = [
    grid(90, 91, 80, 92, 70, 70),
    grid(90, 80, 92, 94, 70, 93),
    grid(90, 80, 94, 92, 70, 95),
]


def test_a_seed_that_is_judged_does_not_choose():
    """The second seed alone prefers alpha 0.5 at rho 0.1; those before and after it have made it take 1."""
    found = [FOUND[1], FOUND[0], FOUND[2]]
    assert best_alpha(0.1)(CELL, FOUND[1:]) == (0.1, 1.0)
    assert gains(CELL, found, points, best_alpha(0.1), best_sam) == [pytest.approx(80 - 92)]


def test_the_best_fields_are_those_of_the_best_mean():
    assert best_eigen_sam(CELL, FOUND[1:]) == (0.2, 1.0)
    assert best_sam(CELL, FOUND) == (0.2, 0.0)
    assert best_eigen_sam(CELL, FOUND[:1]) == (0.1, 0.5)


def test_choosing_by_oneself_would_find_a_gain_in_noise_and_this_does_not():
    """All fields are alike: the better of one's own two is ahead of the third, that of others is not."""
    draw, chosen, honest = random.Random(0), [], []
    for _ in range(400):
        found = [grid(*(draw.gauss(90, 1) for _ in PLACES)) for _ in range(2)]
        own = max(points(found[0][field(0.1, alpha)]) for alpha in (0.5, 1.0))
        chosen.append(own - points(found[0][field(0.1, 0.0)]))
        honest += gains(CELL, found, points, best_alpha(0.1), lambda cell, chosen_by: (0.1, 0.0))
    error = (2 / len(honest)) ** 0.5
    assert abs(sum(honest) / len(honest)) < 4 * error
    assert sum(chosen) / len(chosen) > 4 * error


def test_a_field_that_diverged_elsewhere_is_not_chosen():
    diverged = grid(90, math.nan, 80, 90, 70, 70)
    assert best_alpha(0.1)(CELL, [diverged, FOUND[0]]) == (0.1, 1.0)


def test_intervals_leave_out_nothing_as_seldom_as_they_say():
    """Of fields that are all alike. With each seed judged by the choice of all others it would be about three times as often."""
    draw, outside = random.Random(1), 0
    for _ in range(600):
        seeds = [[grid(*(draw.gauss(90, 1) for _ in PLACES))] for _ in range(10)]
        best = judge({"cells": [CELL]}, seeds).criteria[1]
        interval = mean_interval(best.values)
        outside += not interval.low <= 0 <= interval.high
    assert 0.05 - 4 * (0.05 * 0.95 / 600) ** 0.5 < outside / 600 < 0.05 + 4 * (0.05 * 0.95 / 600) ** 0.5


def test_one_seed_alone_decides_nothing():
    outcome = judge({"cells": [CELL]}, [[FOUND[0]]])
    assert all(len(c.values) == 0 for c in outcome.criteria)
    assert verdict_of([judged(asdict(c)) for c in outcome.criteria]) == "undecided"


def test_the_verdict_is_of_means_over_cells_and_rhos():
    tops = [8.0, 4.0, 2.0, 4.0, 1.0, 1.0]
    found = [grid(90, 91, 92, 92, 93, 94, top=tops)] * 5
    outcome = judge({"cells": [CELL, CELL | {"name": "two"}]}, [[one, one] for one in found])
    same, best, top = (c for c in outcome.criteria if c.decisive)
    assert same.seeds == [1, 3]
    assert same.values == pytest.approx([2.0, 2.0])
    assert best.values == pytest.approx([2.0, 2.0])
    assert top.values == pytest.approx([-2.0, -2.0])
    assert len(outcome.criteria) == 9
    accuracy = outcome.panels[0]
    assert accuracy.title == "one: test accuracy"
    assert accuracy.values[1] == pytest.approx([91.0, 93.0])


def test_a_grid_is_trained_field_by_field_and_alpha_0_is_sam(tmp_path):
    preset = RHO_ALPHA_STUDY.preset("smoke")
    cell = preset["cells"][0]
    found = measure(preset, cell, 0, tmp_path, lambda done, total: None)
    assert list(found) == [field(rho, alpha) for rho in cell["rhos"] for alpha in cell["alphas"]]
    assert all(0 <= arm["summary"]["test_accuracy"] <= 1 for arm in found.values())
    methods = [(tmp_path / f"arm-{i}" / "config.json").read_text() for i in range(2)]
    assert '"method": "sam"' in methods[0]
    assert '"method": "eigen-sam"' in methods[1]


def test_every_cell_of_every_scale_is_a_grid_with_sam():
    for preset in RHO_ALPHA_STUDY.scales.values():
        for cell in preset["cells"]:
            assert cell["alphas"][0] == 0.0
            assert min(cell["rhos"]) > 0
            assert sorted(cell["rhos"]) == cell["rhos"]
