"""Every method: what a step costs, claimed and counted, and how far it is from what it was compared with.

    python benchmarks/method_table.py

Writes the tables of docs/methods.md: a row for each name in `flatwise.methods.names()`, from its evidence in `tests/methods/` and
its row in docs/seams.md. A minute.
"""

from __future__ import annotations

import platform
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

import flatwise as fw  # noqa: E402
from flatwise import methods  # noqa: E402
from flatwise.methods import Dialogue, Wrapper  # noqa: E402

PAGE, SEAMS = ROOT / "docs" / "methods.md", ROOT / "docs" / "seams.md"
BEGIN, END = "<!-- table of methods -->\n", "<!-- end of the table -->\n"

TEXT = """\
Evaluations a step are those that the class claims, and those counted over {steps} steps of `SharpnessAware` on a small network
with the defaults (`late-sam` from step {start} on). Under seams stands the largest difference of any weight from a reference run,
over [the ways to drive a step](seams.md) with a bound of at most 1e-6.

{costs}
The first difference is that of any weight from a slow transcription of the paper, after 50 steps in float64; the second that from
a check that the same hand did not write. Differences of gradients divide rounding by a small length, and pytorch_optimizer takes
its norms in float32: where they are involved, entries are larger than rounding in float64.

{evidence}
Made by `python benchmarks/method_table.py` with torch {torch} on {machine}, {date}. The suite holds every entry to a bound. A
method joins by being listed.
"""

BOUND, REFUSED, STRICT = "*bound*", "–", 1e-6
"""Of docs/seams.md: the name of its last row, what stands where a seam cannot be had, and the bound up to which one counts."""

Batch = tuple[torch.Tensor, torch.Tensor]
STEPS, START = 100, 75
SETTINGS: dict[str, dict[str, object]] = {
    "late-sam": {"start": START},
    "ae-sam": {"steps": STEPS},
    "dom-sgd": {"k": 2, "every": 25},
    "bulk-sgd": {"k": 2, "every": 25},
}
"""Where the defaults are made for long trainings or many classes."""


# --- what it is -------------------------------------------------------------------------------------------------------


def label(method: Dialogue) -> str:
    """The class, and what it goes around."""
    name = type(method).__name__
    return f"{name}({label(method.method)})" if isinstance(method, Wrapper) else name


def paper(method: Dialogue) -> str:
    """A link to the first paper that the class names."""
    found = re.search(r"arXiv (\d{4}\.\d{5})", type(method).__doc__ or "")
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


# --- what it costs ----------------------------------------------------------------------------------------------------


def claimed(name: str) -> str:
    """Evaluations a step over STEPS steps, as the class has it."""
    total = methods.by_name(name, **SETTINGS.get(name, {})).evaluations(STEPS)
    return "by the data" if total is None else f"{total / STEPS:.4g}"


def counted(name: str) -> str:
    """Evaluations a step over STEPS steps: how often the closure was called."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    data = [(torch.randn(24, 8), torch.arange(24) % 3) for _ in range(5)]
    optimizer = _around(name, model, data)
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    for step in range(STEPS):
        batch = data[step % len(data)]
        optimizer.step(closure)
    return f"{calls / STEPS:.4g}"


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _around(name: str, model: nn.Module, data: list[Batch]) -> fw.SharpnessAware:
    """An optimizer with the method, and the eigenvectors that it may need."""
    method = methods.by_name(name, **SETTINGS.get(name, {}))
    if "subspace" in method.needs:
        method = replace(method, subspace=fw.curvature.eigenspace(fw.Objective(model, loss_of, data)))
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fw.SharpnessAware(base, method, model=model)


# --- what it was compared with ----------------------------------------------------------------------------------------


def compared(name: str) -> Iterator[list[str]]:
    """For each variant its name, the difference from the transcription, from the independent check, and what that is."""
    from methods import evidence

    for variant, found in evidence.every_evidence().items():
        if variant.partition(",")[0] == name:
            differences = evidence.difference_from_transcription(variant), found.independent()
            yield [variant, *map(_short, differences), found.label.replace("|", r"\|")]


def _short(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def seams(name: str) -> str:
    """The largest difference over the seams of docs/seams.md with a strict bound; nothing if it is not in there."""
    found: list[float] = []
    for table in re.findall(r"(?:^\|.*\n)+", SEAMS.read_text(encoding="utf-8"), re.MULTILINE):
        rows = {cells[0]: cells[1:] for cells in map(cells_of, table.splitlines())}
        strict = [float(bound) <= STRICT for bound in rows.get(BOUND, [])]
        found += [float(cell) for cell, counts in zip(rows.get(name, []), strict) if counts and cell != REFUSED]
    return _short(max(found)) if found else ""


def cells_of(line: str) -> list[str]:
    """Those of a line of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


# --- the page ---------------------------------------------------------------------------------------------------------

COSTS = ["name", "`fw.methods.`", "arXiv", "evaluations a step, claimed", "counted", "seams"]
EVIDENCE = ["name", "from the transcription", "from the independent check", "which is"]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *rows])


def row(name: str) -> list[str]:
    """What a method is, what it costs, and how far apart the seams are."""
    method = methods.by_name(name)
    return [name, f"`{label(method)}`", paper(method), claimed(name), counted(name), seams(name)]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = {"torch": torch.__version__, "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}
    costs = table(COSTS, map(row, methods.names()))
    evidence = table(EVIDENCE, (cells for name in methods.names() for cells in compared(name)))
    text = TEXT.format(steps=STEPS, start=START, costs=costs, evidence=evidence, **made)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
