"""Peak memory of a training step of ResNet-50 (25.6 million weights) on the CPU: base, flatwise, and other implementations.

Every contender runs in processes of its own: one under torch's profiler, whose record of each allocation gives the peak of live
tensors during a step; and three without it for the peak of the resident set, from before the model is made to after that step.
The images are few and small, so that what the optimizers hold is not hidden by activations. "Copies" counts what comes on top of
weights, gradients and the base's momentum, in multiples of the weights; the base's own are activations and temporaries.

    pip install pytorch_optimizer sam-pytorch temperon unifiedsam      # what is missing is left out
    python benchmarks/memory.py [--images 2] [--side 96] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

import flatwise as fw
from flatwise.methods import SAM, SGD, EigenSAM, GradientNorm, Method, ReverseSAM

Step = Callable[[], object]
SGD_SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
MEASURED = "the measured step"
MB = 1e6
RESIDENT_RUNS = 3
"""The resident set varies by some tens of MB with the allocator's luck: the median of so many processes counts."""


@dataclass
class Problem:
    """What is trained, and its base optimizer."""

    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor

    def base(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), **SGD_SETTINGS)

    def loss(self) -> torch.Tensor:
        loss = F.cross_entropy(self.model(self.inputs), self.labels)
        loss.backward()
        return loss

    def closure(self, optimizer: object) -> Callable[[], torch.Tensor]:
        def zeroed() -> torch.Tensor:
            optimizer.zero_grad()
            return self.loss()

        return zeroed


# --- contenders -------------------------------------------------------------------------------------------------------


def base(problem: Problem) -> Step:
    optimizer = problem.base()
    closure = problem.closure(optimizer)

    def step() -> None:
        closure()
        optimizer.step()

    return step


def ours(method: Method) -> Callable[[Problem], Step]:
    def make(problem: Problem) -> Step:
        optimizer = fw.SharpnessAware(problem.base(), method, model=problem.model)
        return lambda: optimizer.step(problem.loss)

    return make


def pytorch_optimizer(name: str, **options: object) -> Callable[[Problem], Step]:
    """Those that are documented with a first `closure()` of the caller's."""

    def make(problem: Problem) -> Step:
        import pytorch_optimizer

        kind = getattr(pytorch_optimizer, name)
        optimizer = kind(problem.model.parameters(), torch.optim.SGD, **SGD_SETTINGS, **options)
        closure = problem.closure(optimizer)

        def step() -> None:
            closure()
            optimizer.step(closure)

        return step

    return make


def gsam(problem: Problem) -> Step:
    from pytorch_optimizer import GSAM, ProportionScheduler

    inner = problem.base()
    constant = torch.optim.lr_scheduler.ConstantLR(inner, factor=1.0)
    rho = ProportionScheduler(constant, max_lr=1e-3, min_lr=1e-4, max_value=0.05, min_value=0.01)
    optimizer = GSAM(problem.model.parameters(), inner, problem.model, rho)

    def step() -> None:
        optimizer.set_closure(F.cross_entropy, problem.inputs, problem.labels)
        optimizer.step()

    return step


def wsam(problem: Problem) -> Step:
    from pytorch_optimizer import WSAM

    optimizer = WSAM(problem.model, problem.model.parameters(), torch.optim.SGD, **SGD_SETTINGS)
    return lambda: optimizer.step(problem.closure(optimizer))


def sam_pytorch(problem: Problem) -> Step:
    from sam.sam import SAM as Peer

    optimizer = Peer(problem.model.parameters(), problem.base())
    return lambda: optimizer.step(problem.closure(optimizer))


def temperon(problem: Problem) -> Step:
    from temperon import Temperon

    optimizer = Temperon(problem.base(), total_steps=1000, tail_frac=1.0)
    return lambda: optimizer.step(problem.closure(optimizer))


def unified_sam(problem: Problem) -> Step:
    from unifiedsam import unifiedSAM

    optimizer = unifiedSAM(problem.model.parameters(), torch.optim.SGD, 0.05, 1.0, **SGD_SETTINGS)
    closure = problem.closure(optimizer)

    def step() -> None:
        closure()
        optimizer.step(closure)

    return step


CONTENDERS: dict[str, Callable[[Problem], Step]] = {
    "base: SGD with momentum": base,
    "flatwise SGD (one evaluation)": ours(SGD()),
    "flatwise SAM": ours(SAM()),
    "flatwise Reverse-SAM": ours(ReverseSAM()),
    "flatwise GradientNorm": ours(GradientNorm()),
    "flatwise Eigen-SAM, ordinary step": ours(EigenSAM(every=100)),
    "flatwise Eigen-SAM, refresh of 5 products": ours(EigenSAM(every=1)),
    "pytorch_optimizer SAM": pytorch_optimizer("SAM"),
    "pytorch_optimizer SAM, foreach": pytorch_optimizer("SAM", foreach=True),
    "pytorch_optimizer GSAM": gsam,
    "pytorch_optimizer FriendlySAM": pytorch_optimizer("FriendlySAM"),
    "pytorch_optimizer WSAM": wsam,
    "pytorch_optimizer LookSAM, ordinary step": pytorch_optimizer("LookSAM", k=10),
    "pytorch_optimizer LookSAM, full step": pytorch_optimizer("LookSAM", k=2),
    "sam-pytorch SAM": sam_pytorch,
    "temperon": temperon,
    "unifiedsam": unified_sam,
}
WARM_UP = 2
"""Steps before the measured one: the base's state is there then, and with k = 2 LookSAM's third step is a full one."""


# --- one process ------------------------------------------------------------------------------------------------------


def problem(images: int, side: int) -> Problem:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=1000)
    return Problem(model, torch.randn(images, 3, side, side), torch.arange(images))


def tensors(name: str, images: int, side: int) -> dict[str, float]:
    """The peak of live tensor bytes during the measured step, and those of the parts that every training has."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        found = problem(images, side)
        step = CONTENDERS[name](found)
        for _ in range(WARM_UP):
            step()
        with record_function(MEASURED):
            step()
    events = recorded.profiler.kineto_results.events()
    (span,) = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == MEASURED]
    total = peak = 0
    for when, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        total += size
        peak = max(peak, total) if span[0] <= when <= span[1] else peak
    weights = _bytes(found.model.parameters())
    return {"peak": peak, "weights": weights, "buffers": _bytes(found.model.buffers())}


def resident(name: str, images: int, side: int) -> dict[str, float]:
    """By how much the resident set grows, at its peak, from before the model is made to after the measured step."""
    CONTENDERS[name](Problem(nn.Linear(1, 1), torch.zeros(1, 1), torch.zeros(1)))  # imports what it needs
    import torchvision  # noqa: F401

    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    step = CONTENDERS[name](problem(images, side))
    for _ in range(WARM_UP + 1):
        step()
    return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


def _bytes(found: object) -> int:
    return sum(t.numel() * t.element_size() for t in found)


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One contender: MB of live tensors and of the resident set at their peaks; copies of the weights beyond the base's three."""

    name: str
    peak: float
    copies: float
    resident: float

    def __str__(self) -> str:
        return f"{self.name:44} {self.peak:10.1f} {self.copies:8.2f} {self.resident:10.0f}"


def fresh(kind: str, name: str, images: int, side: int) -> dict[str, float]:
    """What a new process measures; it uses one thread."""
    words = [sys.executable, __file__, "--images", str(images), "--side", str(side), "--one", kind, name]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def measured(name: str, images: int, side: int) -> Row:
    live = fresh("tensors", name, images, side)
    grown = [fresh("resident", name, images, side)["resident"] for _ in range(RESIDENT_RUNS)]
    beyond = live["peak"] - 3 * live["weights"] - live["buffers"]
    return Row(name, live["peak"] / MB, beyond / live["weights"], statistics.median(grown) / MB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, name = options.one
        print(json.dumps({"tensors": tensors, "resident": resident}[kind](name, options.images, options.side)))
        return
    print(f"{'':44} {'peak, MB':>10} {'copies':>8} {'resident':>10}")
    rows = []
    for name in CONTENDERS:
        try:
            rows.append(measured(name, options.images, options.side))
            print(rows[-1], flush=True)
        except RuntimeError as error:
            print(f"{name:44} left out: {error}", flush=True)
    if options.json:
        setting = {"images": options.images, "side": options.side, "torch": torch.__version__}
        options.json.write_text(json.dumps({**setting, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
