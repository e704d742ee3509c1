"""The free eigenvector as a claim: what is compared, and that it is the runs of the experiment itself."""

import math
from dataclasses import asdict

import pytest
import torch

from flatwise.experiments.claims.free import FREE_EIGENVECTOR, behind, dearness, flatter, measure
from flatwise.experiments.free_eigenvector import Trial

PRESET = FREE_EIGENVECTOR.preset("smoke")
CELL = {
    "free": {"cosines": [0.1, 0.9, 0.7, 0.8], "evaluations": 2.2, "top_eigenvalue": 1.0},
    "every-10": {"cosines": [0.5, 0.6, 0.7, 0.2], "evaluations": 2.5, "top_eigenvalue": 2.0},
    "sam-equal-norm": {"cosines": [], "evaluations": 2.0, "top_eigenvalue": 4.0},
}


def test_what_is_compared():
    assert behind(CELL) == pytest.approx(0.75 - 0.55)
    assert dearness(CELL) == pytest.approx(1.1)
    assert flatter(CELL) == pytest.approx(-2.0)
    negative = CELL | {"free": CELL["free"] | {"top_eigenvalue": -1.0}}
    assert math.isnan(flatter(negative))


def test_the_runs_are_those_of_the_experiment(tmp_path):
    threads, told = torch.get_num_threads(), []
    torch.set_num_threads(1)
    found = measure(PRESET, {"network": "digits"}, 100, tmp_path, lambda done, total: told.append((done, total)))
    alone = asdict(Trial("digits", "free", 100, epochs=1).run())
    torch.set_num_threads(threads)
    assert list(found) == PRESET["arms"]
    assert {k: v for k, v in found["free"].items() if k != "seconds"} == {
        k: v for k, v in alone.items() if k != "seconds"
    }
    assert found["sam-equal-norm"]["rho"] == found["every-10"]["displacement_norm"]
    assert told == sorted(told)
    assert told[-1] == (4000, 4000)


def test_a_verdict_of_known_numbers():
    outcome = FREE_EIGENVECTOR.judge({"cells": [{"network": "digits"}], "arms": list(CELL)}, [[CELL], [CELL]])
    decisive = {c.name: list(c.values) for c in outcome.criteria if c.decisive}
    assert decisive == {
        "digits: |cos| less that of every 10": pytest.approx([0.2, 0.2]),
        "evaluations to SAM's": pytest.approx([1.1, 1.1]),
    }
    assert [line.label for line in outcome.panels[0].lines] == ["free", "every-10"]
