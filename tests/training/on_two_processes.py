"""Runs that two processes share: what they leave is compared with the run of one.

Networks are named as `training.on_two_processes:NAME`, in float64 so that only rounding is left between the two.
"""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from distributed import processes
from torch import nn

from flatwise.training import Interrupted, TrainConfig, train
from flatwise.training.distributed import processes as world_of

STEPS = 6


class Wide(nn.Module):
    """A network in float64 on inputs in float32."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.double()

    def forward(self, x):
        return self.inner(x.double())


def smooth(task):
    """Tanh, so that no rounding flips a kink."""
    return Wide(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, task.num_classes)))


def noisy(task):
    """Every process draws dropout masks of its own."""
    return Wide(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(), nn.Linear(12, task.num_classes)))


def normed(task):
    """Convolutions with BatchNorm; a running average, and a plain one."""
    first = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    second = [nn.Linear(36, 8), nn.BatchNorm1d(8, momentum=None), nn.Tanh(), nn.Linear(8, task.num_classes)]
    return Wide(nn.Sequential(*first, *second))


BASE = TrainConfig(
    model="training.on_two_processes:smooth",
    subset=101,  # the last batch has 5 samples, 3 and 2 of them for a process
    batch_size=32,
    steps=STEPS,
    lr=0.1,
    probe_every=2,
    checkpoint_every=3,
    trace_samples=4,
    eigen_tol=1e-8,
)
NOISY = replace(BASE, model="training.on_two_processes:noisy")
NORMED = replace(BASE, model="training.on_two_processes:normed")
FEW = {
    "sgd": replace(BASE, method="sgd"),
    "sam": BASE,
    "eigen-sam": replace(BASE, method="eigen-sam", every=2),
    "looksam": replace(BASE, method="looksam", hyper=("every=3",)),
    "eigen-sam, BatchNorm, crops": replace(NORMED, method="eigen-sam", every=2, augment=True, validation=0.2),
}
MORE = {
    "sam, adamw": replace(BASE, optimizer="adamw", lr=0.01),
    "sam, two parts": replace(BASE, parts=2),
    "sam, full batch": replace(BASE, batch_size=0),
    "sam, BatchNorm": NORMED,
    "ae-sam": replace(BASE, method="ae-sam"),
    "ssam": replace(BASE, method="ssam"),
}
ONLY_DDP = {"dom-sgd": replace(BASE, method="dom-sgd", hyper=("k=2",))}

REFUSED = {
    "too few samples": (replace(BASE, batch_size=100), "ddp"),
    "samples are chosen": (replace(BASE, method="esam", hyper=("gamma=0.5",)), "ddp"),
    "a subspace of shards": (ONLY_DDP["dom-sgd"], "fsdp2"),
    "channels last": (replace(NORMED, channels_last=True), "fsdp2"),
    "a misspelt model": (replace(BASE, model="mpl"), "ddp"),
}


def place(name, parallel):
    return Path(processes.folder()) / f"{parallel} {name}"


def run(config, name, parallel):
    """Also where one process has begun in the folder."""
    return lambda rank: train(config, place(name, parallel), parallel=parallel).status


def refused(config, parallel):
    def scenario(rank):
        try:
            train(config, place("refused", parallel), parallel=parallel)
        except ValueError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    return scenario


def compiled(parallel):
    """Through all stages of torch.compile but the compiler."""

    def scenario(rank):
        config = replace(NORMED, compile=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
            return train(config, place("compiled", parallel), parallel=parallel).status

    return scenario


def interrupted(config, parallel):
    """One of them is asked to stop; both do, after the same step."""

    def scenario(rank):
        def ask(done, total):
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            train(config, place("stopped", parallel), parallel=parallel, progress=ask)
        except Interrupted as stop:
            return stop.step, stop.signal
        return None

    return scenario


def resumed(parallel):
    """Stopped and continued by the same two."""

    def scenario(rank):
        assert interrupted(NOISY, parallel)(rank) == (4, signal.SIGTERM)
        return train(NOISY, place("stopped", parallel), parallel=parallel).status

    return scenario


def fails_together(rank):
    """What one process raises, each process gets."""
    found = []
    with world_of() as world:
        for culprit in (0, 1):
            try:
                with world.together():
                    if rank == culprit:
                        raise ValueError(f"{culprit} fails")
            except ValueError as error:
                found.append(f"{type(error).__name__}: {error}")
        return found, world.told(lambda: rank), world.in_turn(lambda: rank), world.highest(rank), world.gathered(rank)


DIVERGING = replace(BASE, method="sgd", lr=1e300, steps=40)
LAYOUTS = ("ddp", "fsdp2")
SCENARIOS = {
    **{f"{p} {name}": run(config, name, p) for name, config in FEW.items() for p in LAYOUTS},
    **{name: refused(*case) for name, case in REFUSED.items()},
    **{f"{p} begun": run(FEW["eigen-sam"], "begun", p) for p in LAYOUTS},
    **{f"{p} stopped": interrupted(FEW["eigen-sam"], p) for p in LAYOUTS},
    "fails together": fails_together,
}
SLOW = {
    **{f"{p} {name}": run(config, name, p) for name, config in MORE.items() for p in LAYOUTS},
    **{f"ddp {name}": run(config, name, "ddp") for name, config in ONLY_DDP.items()},
    **{f"{p} diverging": run(DIVERGING, "diverging", p) for p in LAYOUTS},
    **{f"{p} compiled": compiled(p) for p in LAYOUTS},
    **{f"{p} noisy": run(NOISY, "noisy", p) for p in LAYOUTS},
    **{f"{p} resumed": resumed(p) for p in LAYOUTS},
}
