"""Method x seam: the largest difference of any weight from the reference run, after fifty steps. Writes docs/seams.md.

    python benchmarks/seam_matrix.py

The seams and the reference runs are those of the tests (`tests/seams/`), where each difference has its bound. Some ten minutes.
"""

import platform
import sys
import time
import warnings
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from methods.cases import CASES, EVERY  # noqa: E402
from seams.every import SEAMS  # noqa: E402

PAGE = """# Seams and methods

Every method along every way of driving a step: the largest difference of any weight from the reference run after fifty steps.
The reference is a slow driver of its own (`tests/reference/driver.py`) that shares no code with the optimizer. The network is
small (103 weights of order one), in float64 unless said otherwise; the base optimizer is SGD with momentum and weight decay.
0 means bitwise equality, a dash that the method cannot be had along that seam and is refused with a sentence that says why:
momentum-sam around a base optimizer without momentum, a dialogue for each part of the batch with an adaptive method.

A method joins by being listed in `tests/methods/cases.py`, a seam by being listed in `tests/seams/`. The last line of a table is
the bound. `make test` holds {few} to it
within one process, `make check-slow` all methods everywhere; `tests/distributed/` and `tests/frameworks/` hold a few
methods to many more variants at every change.

Largest differences, bfloat16 apart: {worst}.
The methods that are named divide differences of gradients, or of losses, by small lengths, which magnifies rounding.

Made by `python benchmarks/seam_matrix.py` with torch {torch} on {machine}, {date}.

{tables}
"""


def difference(seam, case):
    """None where the method does not fit; NaN where weights are not finite."""
    if not seam.fits(case):
        return None
    found = seam.difference(case)
    if not found <= seam.tolerance:
        print(f"ABOVE ITS BOUND: {case.name}, {seam.name}: {found:.1e}", flush=True)
    return found


def shown(number):
    return "–" if number is None else f"{number:.1e}".replace("0.0e+00", "0")


def table(kind, seams):
    lines = [[case.name, *(shown(FOUND[seam.name, case.name]) for seam in seams)] for case in EVERY]
    head = ["method", *(seam.name for seam in seams)]
    bounds = ["*bound*", *(f"{seam.tolerance:.0e}" for seam in seams)]
    notes = [f"{seam.name}: {seam.note}." for seam in seams if seam.note]
    rows = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines, bounds]]
    return "\n".join([f"## {kind[0].upper()}{kind[1:]}", "", *rows, *(["", " ".join(notes)] if notes else [])])


def worst():
    """The largest entry of each of the methods that do not agree to rounding."""
    strict = {seam.name for seam in SEAMS if seam.tolerance <= 1e-6}
    largest = {
        case.name: max(FOUND[name, case.name] for name in strict if FOUND[name, case.name] is not None)
        for case in EVERY
    }
    apart = {name: value for name, value in largest.items() if value > 1e-12}
    same = max(value for name, value in largest.items() if name not in apart)
    told = ", ".join(f"{name} {value:.0e}" for name, value in sorted(apart.items(), key=lambda pair: -pair[1]))
    return f"{told}; all others at most {same:.0e}"


FOUND = {}


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for seam in SEAMS:
        FOUND.update({(seam.name, case.name): difference(seam, case) for case in EVERY})
        print(seam.name, *(shown(FOUND[seam.name, case.name]) for case in EVERY), flush=True)
    page = PAGE.format(
        few=", ".join(case.name for case in CASES),
        worst=worst(),
        torch=torch.__version__,
        machine=platform.machine(),
        date=time.strftime("%Y-%m-%d"),
        tables="\n\n".join(table(kind, list(seams)) for kind, seams in groupby(SEAMS, key=lambda seam: seam.kind)),
    )
    (ROOT / "docs" / "seams.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
