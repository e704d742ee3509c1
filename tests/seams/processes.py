"""Seams of several processes, started once for all rows of the table. Their bounds are held by `tests/distributed/`."""

import tempfile
from functools import cache

from distributed.processes import results_of
from optim.problems import norm_net
from seams.seam import Seam, slowly
from seams.two import LAYOUTS, PARALLEL


@cache
def results():
    with tempfile.TemporaryDirectory() as folder:
        return results_of("seams.two:SCENARIOS", 2, folder)


def of_first_rank(layout):
    def weights(case):
        found = results()[f"{layout} {case.name}"][0]
        if isinstance(found, dict):
            raise RuntimeError(found["raised"])
        return found

    return weights


def reference(layout):
    return (lambda case: slowly(case, norm_net)) if "BatchNorm" in layout else None


PROCESSES = [
    Seam(layout, of_first_rank(layout), "two processes", tolerance=1e-6, reference=reference(layout))
    for layout in (*LAYOUTS, PARALLEL)
]
