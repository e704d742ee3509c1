"""The rest of the matrix: every method in several processes and within frameworks. All of it is slow.

A few methods are tested there at every change, and with many more variants, in `tests/distributed/` and `tests/frameworks/`.
"""

import warnings

import pytest
from methods.cases import EVERY
from seams.frameworks import FRAMEWORKS
from seams.processes import PROCESSES

pytestmark = pytest.mark.slow


def pairs(seams):
    """A seam and a method each that fit."""
    return [
        pytest.param(seam, case, id=f"{case.name}-{seam.name}") for case in EVERY for seam in seams if seam.fits(case)
    ]


@pytest.mark.parametrize(("seam", "case"), pairs(PROCESSES))
def test_in_two_processes_the_weights_are_those_of_one(seam, case):
    assert seam.difference(case) <= seam.tolerance


@pytest.mark.parametrize(("seam", "case"), pairs(FRAMEWORKS))
def test_within_a_framework_the_weights_are_those_of_a_plain_loop(seam, case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks, about their own dependencies
        assert seam.difference(case) <= seam.tolerance
