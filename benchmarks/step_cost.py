"""What a step of every method costs, as a multiple of the base optimizer's step, and `pytorch_optimizer`'s beside it.

In every round all contenders take a step in turn, each right after a step of the base optimizer, so that a machine that drifts
drifts for both. Where steps differ (a refresh, a SAM step among plain ones) each kind is timed by itself and enters with its
share. The figure is the median over repeats of the ratio within a repeat, printed with its range. Time is that of the
processor, on one thread: on a busy machine the clock and more threads measure the others.

    python benchmarks/step_cost.py [--networks mlp cnn6 resnet18] [--methods sam ...] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import flatwise as fw
from flatwise import methods
from flatwise import vectors as V
from flatwise.methods import SAM, Dialogue, Late
from flatwise.vectors import Vector

SGD_SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
FOREVER = 10**9
Step = Callable[[], object]


@dataclass
class Problem:
    """What is trained, and its base optimizer."""

    model: nn.Module
    inputs: torch.Tensor
    classes: int

    def base(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), **SGD_SETTINGS)

    def loss(self) -> torch.Tensor:
        loss = F.cross_entropy(self.model(self.inputs), torch.arange(len(self.inputs)) % self.classes)
        loss.backward()
        return loss

    def closure(self, optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
        def zeroed() -> torch.Tensor:
            optimizer.zero_grad()
            return self.loss()

        return zeroed


# --- networks ---------------------------------------------------------------------------------------------------------


def mlp() -> Problem:
    layers = [layer for _ in range(10) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return Problem(nn.Sequential(*layers[:-1]), torch.randn(64, 256), 256)


def cnn6() -> Problem:
    from flatwise.tasks import Task, build_model

    images = torch.randn(128, 3, 32, 32)
    labels = torch.arange(128) % 10
    return Problem(build_model("cnn6", Task("random", images, labels, images, labels, 10), seed=0), images, 10)


def resnet18() -> Problem:
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return Problem(model, torch.randn(16, 3, 32, 32), 10)


@dataclass(frozen=True)
class Network:
    """Which one, the rounds of a repeat, and the steps before a timed one, which bring a small network back into the caches."""

    label: str
    make: Callable[[], Problem]
    rounds: int
    warm: int


NETWORKS = {
    "mlp": Network("MLP of ten 256-wide layers, batch 64", mlp, rounds=15, warm=2),
    "cnn6": Network("cnn6, batch 128", cnn6, rounds=4, warm=0),
    "resnet18": Network("resnet18, batch 16", resnet18, rounds=3, warm=0),
}


# --- contenders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of step: its share of all steps, and how it is made."""

    share: float
    make: Callable[[Problem], Step]


def base(problem: Problem) -> Step:
    optimizer = problem.base()
    closure = problem.closure(optimizer)

    def step() -> None:
        closure()
        optimizer.step()

    return step


def ours(method: Dialogue, share: float = 1.0) -> Kind:
    def make(problem: Problem) -> Step:
        optimizer = fw.SharpnessAware(problem.base(), method, model=problem.model)

        def step() -> None:
            optimizer.step(problem.loss)
            if optimizer.diagnostics["skipped"]:
                raise RuntimeError(f"{method} has become non-finite: what is timed is no step")

        return step

    return Kind(share, make)


def kinds(name: str) -> list[Kind]:
    """The kinds of steps of a method with its defaults."""
    method = methods.by_name(name)
    if isinstance(method, Late):
        return [ours(Late(SAM(), start=FOREVER), 0.75), ours(Late(SAM(), start=0), 0.25)]
    if isinstance(method, methods.AESAM):
        return [ours(replace(method, start=c, end=c), 0.5) for c in (-1e9, 1e9)]
    if isinstance(method, methods.Dominant):
        return [ours(replace(method, every=FOREVER, subspace=some_space))]
    every = getattr(method, "every", 1)
    if every == 1 or isinstance(method, methods.PRGD):
        return [ours(method)]
    return [ours(replace(method, every=FOREVER), 1 - 1 / every), ours(replace(method, every=1), 1 / every)]


def some_space(known: list[Vector], weights: Vector) -> list[Vector]:
    """Unit vectors that take no look at the loss: what is timed is what is done with them."""
    del weights
    return [V.unit(V.random_like(vector, seed)) for seed, vector in enumerate(known)]


EVALUATIONS = {"late-sam": 1.25, "ae-sam": 1.5}
NOTES = {
    "late-sam": "the last quarter of the steps",
    "ae-sam": "if every second gradient is large",
    "dom-sgd": "10 vectors, without finding them",
    "bulk-sgd": "10 vectors, without finding them",
}


# --- pytorch_optimizer, as it is documented ---------------------------------------------------------------------------


def peer(name: str, share: float = 1.0, **options: object) -> Kind:
    """Those with a first `closure()` of the caller's."""

    def make(problem: Problem) -> Step:
        import pytorch_optimizer

        kind = getattr(pytorch_optimizer, name)
        optimizer = kind(problem.model.parameters(), torch.optim.SGD, **SGD_SETTINGS, **options)
        closure = problem.closure(optimizer)

        def step() -> None:
            closure()
            optimizer.step(closure)

        return step

    return Kind(share, make)


def gsam(problem: Problem) -> Step:
    from pytorch_optimizer import GSAM, ProportionScheduler

    inner = problem.base()
    constant = torch.optim.lr_scheduler.ConstantLR(inner, factor=1.0)
    rho = ProportionScheduler(constant, max_lr=1e-3, min_lr=1e-4, max_value=0.05, min_value=0.01)
    optimizer = GSAM(problem.model.parameters(), inner, problem.model, rho)
    labels = torch.arange(len(problem.inputs)) % problem.classes

    def step() -> None:
        optimizer.set_closure(F.cross_entropy, problem.inputs, labels)
        optimizer.step()

    return step


def wsam(problem: Problem) -> Step:
    from pytorch_optimizer import WSAM

    optimizer = WSAM(problem.model, problem.model.parameters(), torch.optim.SGD, decouple=False, **SGD_SETTINGS)
    return lambda: optimizer.step(problem.closure(optimizer))


PEERS = {
    "sam": [peer("SAM", rho=0.05)],
    "asam": [peer("SAM", rho=0.5, adaptive=True)],
    "gsam": [Kind(1.0, gsam)],
    "wsam": [Kind(1.0, wsam)],
    "friendly-sam": [peer("FriendlySAM")],
    "looksam": [peer("LookSAM", 0.8, k=FOREVER), peer("LookSAM", 0.2, k=1)],
}


# --- timing -----------------------------------------------------------------------------------------------------------


def seconds(step: Step, warm: int) -> float:
    """Processor time of all threads, which other jobs lengthen less than they do time by the clock."""
    for _ in range(warm):
        step()
    start = time.process_time()
    step()
    return time.process_time() - start


def built(kind: Kind, make: Callable[[], Problem]) -> Step:
    """A step on a model of its own, the same for all, after the first ones, which make state and refresh eigenvectors."""
    torch.manual_seed(0)
    step = kind.make(make())
    for _ in range(2):
        step()
    return step


def repeat(contenders: dict[str, list[tuple[float, Step]]], plain: Step, network: Network) -> dict[str, float]:
    """The cost of a step of each contender in multiples of the base's."""
    times = {name: [([], []) for _ in steps] for name, steps in contenders.items()}
    for _ in range(network.rounds):
        for name, steps in contenders.items():
            for (_, step), (bases, others) in zip(steps, times[name], strict=True):
                bases.append(seconds(plain, network.warm))
                others.append(seconds(step, network.warm))
    shares = {name: [share for share, _ in steps] for name, steps in contenders.items()}
    ratios = {name: [statistics.median(b) / statistics.median(a) for a, b in pairs] for name, pairs in times.items()}
    found = {name: sum(s * r for s, r in zip(shares[name], ratios[name], strict=True)) for name in contenders}
    bases = [t for pairs in times.values() for base_times, _ in pairs for t in base_times]
    return found | {"base step, ms": 1e3 * statistics.median(bases)}


def measured(network: Network, names: list[str], repeats: int) -> dict[str, list[float]]:
    made = {name: kinds(name) for name in names}
    made |= {f"pytorch_optimizer {name}": PEERS[name] for name in names if name in PEERS}
    plain = built(Kind(1.0, base), network.make)
    contenders = {name: [(k.share, built(k, network.make)) for k in found] for name, found in made.items()}
    rows = []
    for number in range(repeats):
        rows.append(repeat(contenders, plain, network))
        print(
            f"{network.label}: repeat {number + 1} of {repeats}, base step {rows[-1]['base step, ms']:.1f} ms",
            flush=True,
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- the table --------------------------------------------------------------------------------------------------------


def described(values: list[float] | None) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """A row for each contender, theirs below ours, and a column for each network."""
    head = ["", "evaluations", *(NETWORKS[key].label for key in results)]
    timed = {name for columns in results.values() for name in columns}
    rows = [row(name, shown, results) for name, shown in listed().items() if name in timed]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def listed() -> dict[str, list[str]]:
    """What stands in the first two columns for each contender, in order."""
    found: dict[str, list[str]] = {}
    for name in methods.names():
        cost = EVALUATIONS.get(name, methods.by_name(name).cost)
        found[name] = [f"{name}, {NOTES[name]}" if name in NOTES else name, f"{cost:.4g}"]
        found[f"pytorch_optimizer {name}"] = [f"{name} of `pytorch_optimizer`", "2"]
    return found


def row(name: str, shown: list[str], results: dict[str, dict[str, list[float]]]) -> list[str]:
    return [*shown, *(described(columns.get(name)) for columns in results.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=methods.names())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for key in options.networks:
        results[key] = measured(NETWORKS[key], options.methods, options.repeats)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
