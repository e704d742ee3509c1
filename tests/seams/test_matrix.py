"""Every seam with every method: the weights after fifty steps are those of the reference run.

A method joins by being listed in `methods/cases.py`, a seam by being listed in `single.py` and its neighbours.
`python benchmarks/seam_matrix.py` writes the same matrix as a table.
"""

import pytest
from methods.cases import every_method
from seams.single import SINGLE


@pytest.mark.parametrize("seam", SINGLE, ids=[seam.name for seam in SINGLE])
@every_method
def test_along_the_seam_the_weights_are_those_of_the_reference_run(case, seam):
    assert seam.difference(case) <= seam.tolerance
