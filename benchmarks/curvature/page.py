"""The page of the documentation, from the results that are there."""

from __future__ import annotations

from typing import Any

from benchmarks.curvature.cost import label, spread
from benchmarks.curvature.results import Results
from benchmarks.tracking.checks import PROBE

HEAD = """# What curvature costs

Made by `python -m benchmarks.curvature` and `python -m benchmarks.tracking --keep`, then `--write docs/curvature-cost.md`, after
`pip install -r benchmarks/curvature/requirements.txt`. One thread. How curvature is measured is said in
[How curvature is measured](curvature.md).
"""

COST = """
## Eigenvalues of a trained network

A cnn6 (BatchNorm, ReLU, {parameters:,} weights) is trained on 10,000 images of CIFAR-10, cropped and flipped: three of four
planned epochs of SGD with momentum 0.9, learning rate 0.1 on a cosine, batches of 128. The Hessian is that of 512 of its
training images, in evaluation mode. Exact is an independent search (SciPy), its result diagonalised in float64. On {networks}
the top eigenvalues are {tops}, the tenth {tenths}. |cos| between the top eigenvectors now and 20 steps earlier: {cosines}.

- *Products*: of the Hessian with a vector. *Passes*: forward through the network + backward through its output, of all samples;
  differentiating twice is one forward and two backward.
- *Work*: floating-point operations of convolutions and matrix products, in those of one gradient. No clock: the same anywhere.
- *Time*: in gradients too. Everybody is timed in turn, with gradients in between, and divided by the round's median gradient.
- *Error*: the largest relative one of the eigenvalues asked for. Medians, with ranges in brackets, over networks and starts.

"Within 1 %" is at the first setting of a list, cheapest first, that is so on every network with one start vector
(`benchmarks/curvature/contenders.py`); with the others, that are timed, the error may be larger. The checks that the loss is one
function, of flatwise and of curvlinops, are part of the cost at the defaults and off otherwise.
"""

TITLES = {
    "top 1, defaults": "The top eigenvalue, at the defaults",
    "top 1": "The top eigenvalue within 1 %",
    "top 10": "The ten largest within 1 % each",
    "top 1, warm": "The top eigenvalue within 1 %, from the eigenvector of 20 steps earlier",
}

MEMORY = """
## Memory

The search for the top eigenvalue of torchvision's ResNet-50 (25.6 million weights, 102 MB in float32) on {images} images of
{side} x {side}, at the settings of "within 1 %": by how much the resident set grows, at its peak, from when model and images are
there. Each row is the median of processes of its own. Copies are multiples of the weights. A Lanczos search keeps a vector for
each product; power iterations keep one, and were stopped after ten products, converged or not.

| | settings | products | GB | copies of the weights |
|---|---|---|---|---|
{rows}
"""

TRACKING = """
## Along a training

Three epochs of SAM (rho 0.05) on 20,000 images, batches of 128; every 50 steps `EigenTracker.update(hessian(objective))` on
{probe} images of the training set (`engine="{engine}"`, {options}). A share of the training is the time of all updates in that of
all steps.

| seed | within 2 % of exact | largest error | share of the time | of the work | gradients an update, after the first |
|---|---|---|---|---|---|
{rows}

{failures}
"""


def page(results: Results) -> str:
    """Whatever there are results of."""
    parts = [HEAD, *_cost(results), *_memory(results.load("memory")), *_tracking(results.load("tracking"))]
    return "".join(parts)


# --- cost -------------------------------------------------------------------------------------------------------------


def _cost(results: Results) -> list[str]:
    found = {name: part for name in TITLES if (part := results.load(name))}
    if not found:
        return []
    first = next(iter(found.values()))
    return [COST.format(**_networks(first["problems"])), *(_table(name, part) for name, part in found.items())]


def _networks(problems: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "parameters": problems[0]["parameters"],
        "networks": "the one network" if len(problems) == 1 else f"the {len(problems)} networks (seeds)",
        "tops": ", ".join(f"{p['values'][0]:.1f}" for p in problems),
        "tenths": ", ".join(f"{p['values'][-1]:.2f}" for p in problems),
        "cosines": ", ".join(f"{p['alignment']:.2f}" for p in problems),
    }


def _table(name: str, part: dict[str, Any]) -> str:
    head = ["", "settings", "products", "passes", "work", "time", "error"]
    lines = [_line(head), _line(["---"] * len(head)), *(_row(row) for row in part["rows"])]
    return f"\n### {TITLES[name]}\n\n" + "\n".join(lines) + f"\n\n{_made(part)}\n"


def _row(row: dict[str, Any]) -> str:
    name = f"{row['contender']} ({row['version']})"
    if row["settings"] is None:
        return _line([name, row["remark"], *[""] * 5])
    passes = f"{spread(row['forward'], '.0f')} + {spread(row['backward'], '.0f')}"
    counts = [spread(row["products"], ".0f"), passes, spread(row["work"])]
    return _line([name, label(row["settings"]), *counts, spread(row["gradients"]), spread(row["errors"], ".1%")])


def _made(part: dict[str, Any]) -> str:
    made = part["made"]
    return f"{made['date']}, torch {made['torch']}, {made['processor']}, load of the machine {made['load']} afterwards."


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# --- memory and tracking ----------------------------------------------------------------------------------------------


def _memory(part: dict[str, Any]) -> list[str]:
    if not part:
        return []
    rows = [
        _line(
            [r["name"], label(r["settings"]), str(r["products"]), spread(r["gigabytes"], ".2f"), f"{r['copies']:.1f}"]
        )
        for r in part["rows"]
    ]
    return [MEMORY.format(rows="\n".join(rows), **part["size"]), f"\n{_made(part)}\n"]


def _tracking(part: dict[str, Any]) -> list[str]:
    if not part:
        return []
    rows, setting = part["rows"], part["setting"]
    text = TRACKING.format(
        engine=setting["engine"],
        probe=PROBE,
        options=label(setting["options"]) if setting["options"] else "the tracker's defaults",
        rows="\n".join(_line(_seed(row)) for row in rows),
        failures=_failures(rows),
    )
    return [text, f"\n{_made(part)}\n"]


def _seed(row: dict[str, Any]) -> list[str]:
    good = f"{row['good']} of {row['checks']}"
    return [
        str(row["seed"]),
        good,
        f"{row['worst']:.1%}",
        f"{row['time']:.1%}",
        f"{row['work']:.1%}",
        spread(row["later"]),
    ]


def _failures(rows: list[dict[str, Any]]) -> str:
    good, checks = (sum(row[name] for row in rows) for name in ("good", "checks"))
    summary = f"Within 2 % at {good} of {checks} checks ({good / checks:.0%})."
    return "\n".join([summary, *(f"Seed {row['seed']}, {failure}." for row in rows for failure in row["failures"])])
