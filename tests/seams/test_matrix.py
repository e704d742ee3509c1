"""Every seam with every method: the weights after fifty steps are those of the reference run.

A method joins by being listed in `methods/cases.py`, a seam by being listed in `single.py` and its neighbours. The methods in
CASES are always tested, the others with the slow tests. `python benchmarks/seam_matrix.py` writes the same matrix as tables.
"""

import pytest
from methods.cases import CASES, EVERY
from seams.single import SINGLE


def pairs(fitting):
    """A seam and a method each, that fit or do not."""
    return [
        pytest.param(seam, case, id=f"{case.name}-{seam.name}", marks=() if case in CASES else pytest.mark.slow)
        for case in EVERY
        for seam in SINGLE
        if seam.fits(case) == fitting
    ]


@pytest.mark.parametrize(("seam", "case"), pairs(fitting=True))
def test_along_the_seam_the_weights_are_those_of_the_reference_run(seam, case):
    assert seam.difference(case) <= seam.tolerance


@pytest.mark.parametrize(("seam", "case"), pairs(fitting=False))
def test_what_does_not_fit_is_refused(seam, case):
    with pytest.raises((ValueError, RuntimeError), match=r"adaptive|momentum"):
        seam.weights(case)
