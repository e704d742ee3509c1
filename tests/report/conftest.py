"""Run folders with made-up numbers of a realistic shape, written through flatwise.runs as training writes them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from flatwise.runs import Run

ENVIRONMENT = {
    "python": "3.12.1",
    "versions": {"flatwise": "0.1.0", "torch": "2.14.1"},
    "platform": "Linux x86_64",
    "cpu": "Some CPU",
    "cores": 2,
    "command": "flatwise train --method sam",
    "started": "2026-11-21T10:00:00+00:00",
}
ON = "1,000 training samples, evaluation mode, float32"
# Test accuracy, top eigenvalue, alignments of displacement and tracked vector, rho.
LEVELS = {
    "sgd": (0.939, 7.35, None, None, 0.0),
    "sam": (0.954, 2.97, 0.31, None, 0.1),
    "eigen-sam": (0.953, 2.90, 0.46, 0.55, 0.102),
    "sam-equal-norm": (0.9535, 2.94, 0.32, None, 0.102),
    "reverse-sam": (0.871, 34.9, 0.28, None, 0.1),
}
LABELS = {
    "sgd": "SGD",
    "sam": "SAM",
    "eigen-sam": "Eigen-SAM",
    "sam-equal-norm": "SAM at equal norm",
    "reverse-sam": "Reverse-SAM",
}
# Label, learning rate, rho, and where the run ends relative to its edge, and what its edge is called.
EDGES = {
    "gd": ("GD", 1.0, 0.0, 0.99, "GD edge 2/lr"),
    "sam": ("SAM", 0.2, 0.3, 1.01, "SAM edge"),
    "eigen-sam": ("Eigen-SAM", 0.2, 0.3, 1.14, "Eigen-SAM edge (derived)"),
}
Status = Literal["finished", "diverged", "unfinished"]


def write_run(
    path: Path, method: str, seed: int, *, status: Status = "finished", until: int = 40, **config: Any
) -> Run:
    """A mini-batch run of 40 epochs of 16 steps, probed every other epoch."""
    rho = LEVELS[method][4]
    settings = {"method": method.replace("-equal-norm", ""), "seed": seed, "data": "digits", "lr": 0.05, "rho": rho}
    run = Run.create(path, settings | config, ENVIRONMENT)
    noise = random.Random(f"{method} {seed}")
    shift = random.Random(seed).gauss(0, 0.006) + noise.gauss(0, 0.003)
    for epoch in range(0, until + 1, 2):
        run.append(probe(method, epoch, shift, noise))
    if status != "unfinished":
        reason = {"reason": "the loss became nan"} if status == "diverged" else {}
        run.finish(status, final(run.metrics()[-1], rho) | reason)
    return run


def probe(method: str, epoch: int, shift: float, noise: random.Random) -> dict[str, Any]:
    accuracy, eigenvalue, displacement, tracked, _ = LEVELS[method]
    rise = 1 - math.exp(-epoch / 4)
    record = {
        "kind": "probe",
        "step": 16 * epoch,
        "epoch": float(epoch),
        "train_loss": 2.3 * math.exp(-epoch / 9) + 0.25 * (1 + noise.gauss(0, 0.05)),
        "test_accuracy": 0.1 * (1 - rise) + (accuracy + shift) * rise + noise.gauss(0, 0.002),
        "top_eigenvalue": 1.5 * (1 - rise) + eigenvalue * rise * (1 + noise.gauss(0, 0.06)),
        "residual": 0.004 * eigenvalue,
        "on": ON,
    }
    alignments = {"alignment_displacement": displacement, "alignment_tracked": tracked}
    return record | {k: v * (0.6 + 0.4 * rise) + noise.gauss(0, 0.02) for k, v in alignments.items() if v}


def final(record: dict[str, Any], rho: float) -> dict[str, Any]:
    """The summary that goes with the last probe."""
    passes = 2 if rho else 1
    levels = {key: record[key] for key in ("test_accuracy", "top_eigenvalue", "train_loss")}
    means = {f"mean_{key}": value for key, value in record.items() if key.startswith("alignment")}
    counts = {"evaluations": 640 * passes, "seconds": 1.3 * passes, "steps": record["step"]}
    return levels | means | counts | {"mean_displacement_norm": rho}


def write_edge_run(path: Path, method: str, seed: int) -> Run:
    """A full-batch run of 1,500 steps that rises to a multiple of its own edge and stays there."""
    _, lr, rho, height, name = EDGES[method]
    noise = random.Random(f"edge {method} {seed}")
    settings = {"method": "sgd" if method == "gd" else method, "seed": seed, "lr": lr, "rho": rho, "batch_size": 0}
    run = Run.create(path, settings, ENVIRONMENT)
    for step in range(0, 1501, 50):
        gradient = 0.12 * math.exp(-step / 700) * math.exp(noise.gauss(0, 0.05)) + 0.01
        edge = 2 / lr if not rho else gradient / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * gradient)) - 1)
        rise = 1 - 0.95 * math.exp(-step / 150)
        record = {
            "kind": "probe",
            "step": step,
            "epoch": float(step),
            "edge": edge,
            "edge_name": name,
            "gd_edge": 2 / lr,
        }
        record |= {"train_loss": 0.09 * math.exp(-lr * step / 300) + 0.002, "residual": 0.001, "on": ON}
        run.append(record | {"top_eigenvalue": rise * height * edge * math.exp(noise.gauss(0, 0.02))})
    last = run.metrics()[-1]
    summary = {"top_eigenvalue": last["top_eigenvalue"], "train_loss": last["train_loss"], "seconds": 20.0}
    run.finish("finished", summary | {"evaluations": 3000})
    return run


def write_plan(folder: Path, arms: list[dict[str, Any]], **entries: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "title": "Digits",
        "kind": "comparison",
        "command": "flatwise demo --out 'my demo'",
        "arms": arms,
        "edge": None,
    }
    (folder / "comparison.json").write_text(json.dumps(plan | entries), encoding="utf-8")
    return folder


def arm(name: str, label: str, seeds: int) -> dict[str, Any]:
    role = "control" if name == "sam-equal-norm" else "method"
    runs = [f"runs/{name}/seed-{seed}" for seed in range(seeds)]
    return {"name": name, "label": label, "role": role, "config": {}, "runs": runs}


def write_comparison(folder: Path, methods: list[str], seeds: int = 5, **entries: Any) -> Path:
    for name in methods:
        for seed in range(seeds):
            write_run(folder / "runs" / name / f"seed-{seed}", name, seed)
    arms = [arm(name, LABELS[name], seeds) for name in methods]
    return write_plan(folder, arms, **({"baseline": methods[0], "seeds": list(range(seeds))} | entries))


def write_edge(folder: Path, seeds: int = 3) -> Path:
    for name in EDGES:
        for seed in range(seeds):
            write_edge_run(folder / "runs" / name / f"seed-{seed}", name, seed)
    arms = [arm(name, EDGES[name][0], seeds) for name in EDGES]
    return write_plan(folder, arms, kind="edge", title="Full batch", pairs=[], seeds=list(range(seeds)))


def write_demo(folder: Path) -> Path:
    write_edge(folder / "edge")
    pairs = [["sam", "sgd"], ["eigen-sam", "sam"], ["eigen-sam", "sam-equal-norm"], ["reverse-sam", "sgd"]]
    title = "SGD, SAM and Eigen-SAM on digits"
    return write_comparison(folder, list(LEVELS), pairs=pairs, edge="edge", title=title)


@pytest.fixture
def run_at() -> Callable[..., Run]:
    """Writes one run: `run_at(path, method, seed, status=..., until=..., **config)`."""
    return write_run


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[..., Path]:
    """Writes a comparison folder: `comparison(methods, seeds=5, **entries of comparison.json)`."""
    return lambda methods, **options: write_comparison(tmp_path / "study", methods, **options)


@pytest.fixture
def edge(tmp_path: Path) -> Callable[..., Path]:
    """Writes an edge folder: `edge(seeds=3)`."""
    return lambda **options: write_edge(tmp_path / "study", **options)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of all five methods with an edge study inside, for tests that do not change it."""
    return write_demo(tmp_path_factory.mktemp("report") / "a demo")
