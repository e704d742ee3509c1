"""Samples a second of SAM on ResNet-18: flatwise in bfloat16 with channels_last, against a plain script in float32.

The plain script is SAM as the common research scripts write it: float32, contiguous, a loop over parameters, the statistics
of BatchNorm held in the second pass. Both train the same network from the same weights on the same images on the same threads,
in turns of a few steps; the figure is the median of the ratios of neighbouring turns, printed with all of them. Then a smaller
network is trained for some epochs in both precisions with the same seeds: the paired difference in test accuracy, with its
95 % interval.

    python benchmarks/throughput.py [--data cifar10] [--batch-size 64] [--rounds 5] [--steps 2] [--threads 2] [--seeds 5]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flatwise as fw
from flatwise.statistics import mean_interval
from flatwise.tasks import Task, build_model, load_data
from flatwise.training import TrainConfig, train

RHO = 0.05
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
Step = Callable[[Tensor, Tensor], None]


def plain(model: nn.Module) -> Step:
    """SAM in a training script of its own."""
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [module.momentum for module in norms]

    def step(inputs: Tensor, targets: Tensor) -> None:
        F.cross_entropy(model(inputs), targets).backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            moves = [RHO / (norm + 1e-12) * p.grad for p in model.parameters()]
            for p, move in zip(model.parameters(), moves):
                p.add_(move)
        optimizer.zero_grad()
        for module in norms:
            module.momentum = 0
        F.cross_entropy(model(inputs), targets).backward()
        for module, momentum in zip(norms, momenta):
            module.momentum = momentum
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves):
                p.sub_(move)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(model: nn.Module) -> Step:
    """The two lines, autocast, and images and weights laid out channels last."""
    model = model.to(memory_format=torch.channels_last)
    optimizer = fw.SharpnessAware(torch.optim.SGD(model.parameters(), **SGD), fw.methods.SAM(rho=RHO), model=model)

    def step(inputs: Tensor, targets: Tensor) -> None:
        inputs = inputs.contiguous(memory_format=torch.channels_last)

        def closure() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)

    return step


def seconds(step: Step, task: Task, size: int, places: range) -> float:
    """The time of some steps on consecutive batches."""
    began = time.perf_counter()
    for place in places:
        at = slice(place * size, (place + 1) * size)
        step(task.train_inputs[at], task.train_targets[at])
    return time.perf_counter() - began


def throughput(task: Task, size: int, rounds: int, steps: int) -> None:
    """Samples a second of both, in turns."""
    model = build_model("resnet18", task, seed=0)
    contenders = {"plain": plain(copy.deepcopy(model)), "flatwise": ours(copy.deepcopy(model))}
    for step in contenders.values():
        seconds(step, task, size, range(1))
    turns = [
        {
            name: seconds(step, task, size, range(1 + i * steps, 1 + (i + 1) * steps))
            for name, step in contenders.items()
        }
        for i in range(rounds)
    ]
    for name in contenders:
        rates = [steps * size / turn[name] for turn in turns]
        print(f"{name:9} {statistics.median(rates):7.1f} samples/s  ({min(rates):.1f} to {max(rates):.1f})")
    ratios = [turn["plain"] / turn["flatwise"] for turn in turns]
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"flatwise / plain: median {statistics.median(ratios):.2f} of {listed}")


def accuracy(seeds: int, threads: int) -> None:
    """A smaller network in both precisions, paired by seed."""
    common = {"data": "fashion-mnist", "subset": 5000, "model": "cnn6", "batch_size": 128, "epochs": 4}
    shared = common | {"probe_every": 0, "curvature": False, "threads": threads}
    fast = {"precision": "bfloat16", "channels_last": True}
    differences: list[float] = []
    for seed in range(seeds):
        found = [_accuracy(TrainConfig(method="sam", seed=seed, **shared, **own)) for own in ({}, fast)]
        differences.append(found[1] - found[0])
        print(f"seed {seed}: float32 {found[0]:.2f} %, bfloat16 channels_last {found[1]:.2f} %")
    interval = mean_interval(differences)
    print(f"difference {interval.mean:+.2f} points (95 % interval {interval.low:+.2f} to {interval.high:+.2f})")


def _accuracy(config: TrainConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return 100 * train(config, Path(folder) / "run").summary["test_accuracy"]


def main() -> None:
    """Both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    for name, default in (("batch-size", 64), ("rounds", 5), ("steps", 2), ("threads", 2), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    images = chosen.batch_size * (1 + chosen.rounds * chosen.steps)
    task = load_data(chosen.data, seed=0, subset=images)
    print(f"ResNet-18 ({chosen.data}), batch {chosen.batch_size}, {chosen.threads} threads, torch {torch.__version__}")
    throughput(task, chosen.batch_size, chosen.rounds, chosen.steps)
    if chosen.seeds:
        accuracy(chosen.seeds, chosen.threads)


if __name__ == "__main__":
    main()
