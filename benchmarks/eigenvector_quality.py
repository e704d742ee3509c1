"""How near Eigen-SAM's vector is to the exact top eigenvector, on two small ReLU networks with BatchNorm, trained on digits.

After some refreshes: |cos| with the exact eigenvector (float64, evaluation mode) of the same batch, at the weights and buffers at
which the refresh was made; in brackets the exact top eigenvalue and the Rayleigh quotient that the refresh found.

    python benchmarks/eigenvector_quality.py
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import flatwise as fw
from flatwise import vectors as V
from flatwise.methods import EigenSAM
from flatwise.tasks import load_data

STEPS, EVERY, LOOKED_AT = 201, 10, (0, 10, 30, 60, 100, 150, 200)


def block(layer: nn.Module, norm: nn.Module) -> list[nn.Module]:
    return [layer, norm, nn.ReLU()]


def mlp() -> nn.Module:
    first, second = block(nn.Linear(64, 64), nn.BatchNorm1d(64)), block(nn.Linear(64, 64), nn.BatchNorm1d(64))
    return nn.Sequential(nn.Flatten(), *first, *second, nn.Linear(64, 10))


def cnn() -> nn.Module:
    first = block(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
    second = block(nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(256, 10))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, V.Vector]:
    objective = fw.Objective(copy.deepcopy(model).double(), loss, [(x.double(), y)], mode="eval")
    pairs = fw.curvature.top_eigenpairs(fw.curvature.hessian(objective), tol=1e-4)
    return pairs.values[0], pairs.vectors[0]


def run(make: Callable[[], nn.Module], seed: int) -> list[tuple[float, float, float]]:
    """|cos|, exact eigenvalue and Rayleigh quotient at the steps looked at."""
    torch.manual_seed(seed)
    task, model = load_data("digits-full"), make()
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = fw.SharpnessAware(base, EigenSAM(0.05, 0.2, every=EVERY, iterations=5), model=model)
    found = []
    for step in range(STEPS):
        index = torch.randint(len(task.train_inputs), (128,))
        batch = task.train_inputs[index], task.train_targets[index]
        probed = None
        for p in optimizer.passes():
            probed = copy.deepcopy(model) if p.is_probe and p.at_weights else probed
            p.backward(loss(model, batch))
        optimizer.step()
        if step in LOOKED_AT and probed is not None:
            state = optimizer.state_dict()["state"]
            value, vector = exact(probed, *batch)
            tracked = [state[i]["flatwise.eigenvector"] for i in range(len(vector))]
            found.append((abs(float(V.cosine(tracked, vector))), value, optimizer.diagnostics["rayleigh_quotient"]))
    return found


def main() -> None:
    torch.set_num_threads(1)
    late: list[float] = []
    for make in (mlp, cnn):
        for seed in range(3):
            rows = run(make, seed)
            late += [c for (c, _, _), step in zip(rows, LOOKED_AT) if step >= 30]
            shown = "  ".join(f"{step}: {c:.2f} ({e:.1f}, {r:.1f})" for (c, e, r), step in zip(rows, LOOKED_AT))
            print(f"{make.__name__} seed {seed}   {shown}")
    print(f"from step 30 on: median {statistics.median(late):.3f}, lowest {min(late):.3f}, {len(late)} refreshes")
    print(f"above 0.95: {sum(c > 0.95 for c in late)}")


if __name__ == "__main__":
    main()
