"""What a step costs, as a multiple of the base optimizer's step: SAM, Eigen-SAM, and `pytorch_optimizer`'s SAM beside them.

Every repeat times blocks of steps of all contenders in turn, so that a machine that drifts drifts for all of them. Steps are
timed one by one; Eigen-SAM's refresh steps are known by their index and enter with their share (one in `every`). The figure
is the median over repeats of the ratio within a repeat, printed with its range.

    python benchmarks/step_cost.py [--repeats 5] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import flatwise as fw
from flatwise.methods import SAM, EigenSAM

EVERY, ITERATIONS = 100, 5
Step = Callable[[], object]


def mlp() -> tuple[nn.Module, torch.Tensor, int]:
    layers = [layer for _ in range(10) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(64, 256), 256


def cnn6() -> tuple[nn.Module, torch.Tensor, int]:
    from flatwise.tasks import Task, build_model

    images = torch.randn(128, 3, 32, 32)
    labels = torch.arange(128) % 10
    return build_model("cnn6", Task("random", images, labels, images, labels, 10), seed=0), images, 10


def resnet18() -> tuple[nn.Module, torch.Tensor, int]:
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model, torch.randn(16, 3, 32, 32), 10


MODELS = {"mlp 10x256, batch 64": (mlp, 40), "cnn6, batch 128": (cnn6, 8), "resnet18, batch 16": (resnet18, 4)}


def contenders(make: Callable[[], tuple[nn.Module, torch.Tensor, int]]) -> dict[str, Step]:
    """One training step of each contender, each on a model of its own with the same start."""
    found: dict[str, Step] = {}
    for name in ("base", "sam", "eigen-sam", "pytorch_optimizer sam"):
        torch.manual_seed(0)
        model, inputs, classes = make()
        found[name] = _step(name, model, inputs, torch.arange(len(inputs)) % classes)
    return found


def _step(name: str, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    base = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    if name == "base":
        return lambda: _plain(model, base, inputs, labels)
    if name == "pytorch_optimizer sam":
        return _peer(model, inputs, labels)
    method = SAM(0.05) if name == "sam" else EigenSAM(0.05, 0.2, every=EVERY, iterations=ITERATIONS)
    optimizer = fw.SharpnessAware(base, method, model=model)

    def closure() -> torch.Tensor:
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def _plain(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def _peer(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    from pytorch_optimizer import SAM as PeerSAM

    optimizer = PeerSAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    def step() -> None:
        closure()
        optimizer.step(closure)

    return step


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def repeat(steps: dict[str, Step], count: int, refresh: float) -> dict[str, float]:
    """The median time of a step of each contender over one interleaved block, as ratios."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count):
        for name, step in steps.items():
            times[name].append(seconds(step))
    t = {name: statistics.median(values) for name, values in times.items()}
    eigen = ((EVERY - 1) * t["eigen-sam"] + refresh * t["sam"]) / EVERY
    return {
        "sam / base": t["sam"] / t["base"],
        "pytorch_optimizer sam / base": t["pytorch_optimizer sam"] / t["base"],
        "eigen-sam / sam": eigen / t["sam"],
        "refresh step / sam": refresh,
        "base step, ms": 1e3 * t["base"],
    }


def refresh_cost(make: Callable[[], tuple[nn.Module, torch.Tensor, int]], repeats: int) -> list[float]:
    """Steps number 0 and 100, 200 ... refresh; timed on an `every=1` twin after its first step, in turn with SAM steps."""
    torch.manual_seed(0)
    model, inputs, classes = make()
    labels = torch.arange(len(inputs)) % classes
    sam = _step("sam", *_twin(make), labels)
    base = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    optimizer = fw.SharpnessAware(base, EigenSAM(0.05, 0.2, every=1, iterations=ITERATIONS), model=model)

    def closure() -> torch.Tensor:
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    optimizer.step(closure)  # step 0 also finds out whether evaluation mode matters
    return [_median_ratio(lambda: optimizer.step(closure), sam) for _ in range(repeats)]


def _twin(make: Callable[[], tuple[nn.Module, torch.Tensor, int]]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return make()[:2]


def _median_ratio(a: Step, b: Step) -> float:
    timed = [(seconds(a), seconds(b)) for _ in range(5)]
    return statistics.median(x for x, _ in timed) / statistics.median(y for _, y in timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, list[float]]] = {}
    for label, (make, count) in MODELS.items():
        results[label] = measure(label, make, count, options.repeats)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))


def measure(
    label: str, make: Callable[[], tuple[nn.Module, torch.Tensor, int]], count: int, repeats: int
) -> dict[str, list[float]]:
    refresh = refresh_cost(make, repeats)
    steps = contenders(make)
    for step in steps.values():  # warm-up: allocators, lazily made state, Eigen-SAM's step 0
        for _ in range(2):
            step()
    rows = [repeat(steps, count, refresh[i]) for i in range(repeats)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    print(label)
    for name, values in columns.items():
        listed = " ".join(f"{v:.3f}" for v in values)
        print(
            f"  {name:30} median {statistics.median(values):.3f}  range {min(values):.3f} to {max(values):.3f}   all: {listed}"
        )
    return columns


if __name__ == "__main__":
    main()
