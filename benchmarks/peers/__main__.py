"""Run what users meet in other packages, and flatwise on the same input.

pip install -r benchmarks/peers/requirements.txt
python -m benchmarks.peers                           # from the project's folder; some minutes
python -m benchmarks.peers --problem 9
python -m benchmarks.peers --write docs/peers.md     # the page of the documentation
"""

from __future__ import annotations

import argparse
import platform
import re
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

import flatwise
from benchmarks.peers.finding import ENTRIES, Finding

PARTS = ("closures", "numerics", "state", "frameworks", "processes", "curvature")
HEAD = """# What other packages do on the same input

Every row was run: the package named in it, and flatwise on the same input in the same run (Python {python}, torch {torch},
flatwise {flatwise}, CPU; two gloo processes where it says so). Problems are numbered as in
[Problems you will not have](problems.md). A product is one of the Hessian with a vector, and "off" is the relative error,
against gradients in float64.

Made by `python -m benchmarks.peers --write docs/peers.md`, after
`pip install -r benchmarks/peers/requirements.txt`; the checks are in `benchmarks/peers/`, none is longer than a screen. Not among
the tests: other packages change.

| problem | asked | of | what happened | flatwise |
|---|---|---|---|---|
{rows}

Not run, since they are on no package registry: davda54/sam, GSAM, F-SAM, Eigen-SAM's code. What is said of them in
[Problems you will not have](problems.md) is quoted from their public threads. Two packages on PyPI are close to davda54/sam:
`sam-pytorch`, and `pytorch-lightning-sam-callback`, which says that it is derived from it. MosaicML's Composer was not installed.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problem", type=int, help="only this one, 1 to 25")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for part in PARTS:
        import_module(f"benchmarks.peers.{part}")
    found: list[Finding] = []
    for entry in sorted(ENTRIES, key=lambda entry: entry.problem):
        if options.problem in (None, entry.problem):
            found.append(entry.run())
            show(found[-1])
    if options.write:
        options.write.write_text(page(found), encoding="utf-8")


def show(finding: Finding) -> None:
    print(f"{finding.problem:>2}  {finding.asked}")
    print(f"    {finding.peer}: {finding.theirs}")
    print(f"    flatwise: {finding.ours}\n", flush=True)


def page(found: Sequence[Finding]) -> str:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "flatwise": flatwise.__version__}
    return HEAD.format(rows="\n".join(map(row, found)), **versions)


def row(finding: Finding) -> str:
    cells = (finding.problem, finding.asked, finding.peer, finding.theirs, finding.ours)
    return "| " + " | ".join(map(escaped, map(str, cells))) + " |"


def escaped(text: str) -> str:
    """What would be emphasis or the end of a cell stays what it is; code between backticks is left alone."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else re.sub(r"([_*<\[])", r"\\\1", part) for i, part in enumerate(parts))


if __name__ == "__main__":
    main()
