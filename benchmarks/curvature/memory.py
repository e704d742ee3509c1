"""Peak memory of the search for the top eigenvalue of ResNet-50 (25.6 million weights), each contender in a process of its own.

Counted is by how much the resident set grows, at its peak, from when model and data are there and everything is imported, as in
benchmarks/memory.py. The network is as torchvision makes it, its residual branches starting at zero so that it can be evaluated
untrained; the images are noise. How large tensors are does not depend on either.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks.curvature.contenders import CONTENDERS, Contender, Search, Settings, installed
from benchmarks.curvature.counting import gradient
from benchmarks.curvature.problems import Problem
from benchmarks.curvature.training import loss_of

GRADIENT = "one gradient"
RUNS = 3
"""The resident set varies by some tens of MB with the allocator's luck: the median of so many processes counts."""

FEW = 10
HOURS = 2
"""After which a process is given up."""


@dataclass(frozen=True)
class Size:
    """How large the images are, and how many."""

    images: int = 32
    side: int = 224


@dataclass
class Grown:
    """What one contender needs.

    Attributes:
        name: who.
        version: of the package.
        settings: of its search.
        products: how many its search took.
        gigabytes: by how much the resident set grew, one entry for each process.
        copies: the median of these in multiples of the weights.
    """

    name: str
    version: str
    settings: Settings
    products: int
    gigabytes: list[float]
    copies: float


# --- one process ------------------------------------------------------------------------------------------------------


def resnet50(size: Size) -> Problem:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=1000, zero_init_residual=True).eval()
    batch = torch.randn(size.images, 3, size.side, size.side), torch.arange(size.images) % 1000
    return Problem(model, batch, torch.zeros(0), torch.zeros(0), 0.0)


def grown(name: str, settings: Settings, size: Size) -> dict[str, Any]:
    """Bytes by which the resident set grows, and the number of products."""
    action = _action(name, settings)
    action(_tiny())  # imports what it needs
    problem = resnet50(size)
    weights = sum(p.numel() * p.element_size() for p in problem.parameters)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    products = action(problem)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"grown": grown, "weights": weights, "products": products}


def _action(name: str, settings: Settings) -> Callable[[Problem], int]:
    if name == GRADIENT:
        return lambda problem: len(gradient(problem.model, loss_of, problem.batch)) * 0
    contender = next(c for c in CONTENDERS if c.name == name)
    return lambda problem: contender.solve(contender.opened(problem, False), Search(1, 0, settings)).products


def _tiny() -> Problem:
    """Something to measure that takes no memory."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return Problem(model, (torch.randn(6, 3, 2, 2), torch.arange(6) % 3), torch.zeros(0), torch.zeros(0), 0.0)


# --- all of them ------------------------------------------------------------------------------------------------------


def measure(settings: dict[str, Settings], size: Size, runs: int = RUNS) -> list[Grown]:
    """A gradient alone, then everybody with the settings that the cost was measured at."""
    rows = []
    for contender in [None, *installed()]:
        name = GRADIENT if contender is None else contender.name
        try:
            rows.append(one(name, contender, _short(contender, settings.get(name)), size, runs))
            print(
                f"  {name:38} {statistics.median(rows[-1].gigabytes):6.2f} GB  {rows[-1].copies:5.1f} copies",
                flush=True,
            )
        except RuntimeError as error:
            print(f"  {name:38} left out: {error}", flush=True)
    return rows


def one(name: str, contender: Contender | None, settings: Settings, size: Size, runs: int) -> Grown:
    found = [fresh(name, settings, size) for _ in range(runs)]
    middle = statistics.median(f["grown"] for f in found)
    version = str(torch.__version__) if contender is None else contender.version or ""
    gigabytes = [f["grown"] / 1e9 for f in found]
    return Grown(name, version, settings, found[0]["products"], gigabytes, middle / found[0]["weights"])


def _short(contender: Contender | None, settings: Settings | None) -> Settings:
    """What was chosen for cnn6, or the first that is tried there. Power iterations keep one vector: a few of them will do."""
    if contender is None:
        return {}
    given = settings or contender.cold[0]
    return {name: min(value, FEW) if name in ("maxIter", "max_iter") else value for name, value in given.items()}


def fresh(name: str, settings: Settings, size: Size) -> dict[str, Any]:
    """What a new process measures; it uses one thread."""
    words = [sys.executable, "-m", "benchmarks.curvature.memory", json.dumps([name, settings, asdict(size)])]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=surroundings, check=False, timeout=HOURS * 3600
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {HOURS} hours") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"ended by signal {-done.returncode}, for want of memory?")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asked, with_settings, of_size = json.loads(sys.argv[1])
    print(json.dumps(grown(asked, with_settings, Size(**of_size))))
