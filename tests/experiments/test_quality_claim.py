"""The claim about cheap arms: which one is chosen, on which seeds, and what decides about it."""

from dataclasses import asdict

import pytest

from flatwise.experiments.claims.quality import judge
from flatwise.report.verdicts import judged, verdict_of

COSTS = {"SAM": 1280, "SGD": 640, "late SAM, from 0.5": 960, "SAM every 5": 768}
PRESET = {"arms": {label: {} for label in COSTS}, "cells": [{"data": "digits"}]}


def seeds(**points):
    """Six seeds, in which SAM has 90 points and each arm some less or more, by label, a little different in each seed."""
    found = []
    for seed in range(6):
        accuracies = {label: 90.0 + points.get(label, 0.0) + 0.05 * ((seed // 2 + len(label)) % 3) for label in COSTS}
        arms = {
            label: {"summary": {"test_accuracy": accuracies[label] / 100, "evaluations": cost}}
            for label, cost in COSTS.items()
        }
        found.append([arms])
    return found


def deciding(found):
    return [judged(asdict(c)) for c in judge(PRESET, found).criteria if c.decisive]


def test_the_cheapest_arm_that_is_good_enough_is_judged_and_its_cost_decides():
    accuracy, cost = deciding(seeds(SGD=-5.0))
    assert accuracy.meaning.startswith("SAM every 5")
    assert list(cost.values) == [0.6] * 3  # a count without a spread
    assert list(cost.places) == list(accuracy.places) == [1, 3, 5]
    assert verdict_of([accuracy, cost]) == "confirmed"


def test_where_only_sam_is_good_enough_the_cost_refutes():
    accuracy, cost = deciding(seeds(**{label: -5.0 for label in COSTS if label != "SAM"}))
    assert accuracy.meaning.startswith("SAM,")
    assert cost.verdict == verdict_of([accuracy, cost]) == "not confirmed"


def test_what_was_chosen_on_some_seeds_is_judged_on_the_others():
    found = seeds(SGD=-5.0)
    for arms in (one[0] for one in found[1::2]):
        arms["SAM every 5"]["summary"]["test_accuracy"] -= 0.03
    accuracy, _ = deciding(found)
    assert accuracy.meaning.startswith("SAM every 5")
    assert accuracy.interval.mean == pytest.approx(-3.0, abs=0.1)
    assert accuracy.verdict == "not confirmed"
