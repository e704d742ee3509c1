"""Seam x method: the largest difference of any weight from the reference run, after fifty steps. Writes docs/seams.md.

    python benchmarks/seam_matrix.py

The rows and the reference runs are those of the tests (`tests/seams/`), where each difference has its bound. A few minutes.
"""

import platform
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from methods.cases import CASES  # noqa: E402
from seams.every import SEAMS  # noqa: E402

PAGE = """# Seams and methods

Every way of driving a step, with every method: the largest difference of any weight from the reference run after fifty steps.
The reference is a slow driver of its own (`tests/reference/driver.py`) that shares no code with the optimizer. The network is
small (103 weights of order one), in float64 unless the row says otherwise. A method joins by being listed in
`tests/methods/cases.py`, a seam by being listed in `tests/seams/`. The suite holds the entries to the bound in the last column:
those of one process in `tests/seams/`, the others in `tests/distributed/` and `tests/frameworks/`.

Made by `python benchmarks/seam_matrix.py` with torch {torch} on {machine}, {date}.

{table}
"""


def row(seam):
    cells = [f"{seam.difference(case):.1e}".replace("0.0e+00", "0") for case in CASES]
    print(seam.name, *cells, flush=True)
    name = f"{seam.name} ({seam.note})" if seam.note else seam.name
    return "| " + " | ".join([name, *cells, f"{seam.tolerance:.0e}"]) + " |"


def table():
    head = ["seam", *(case.name for case in CASES), "bound"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(row(seam) for seam in SEAMS)])


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    page = PAGE.format(
        torch=torch.__version__, machine=platform.machine(), date=time.strftime("%Y-%m-%d"), table=table()
    )
    (ROOT / "docs" / "seams.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
