"""The third-order differential equation of SAM follows the method more closely than the second-order one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from flatwise.experiments.claims.claim import Claim, Criterion, Outcome, Panel, Values
from flatwise.experiments.claims.lines import band, fit
from flatwise.experiments.claims.stages import Stages
from flatwise.objective import Objective
from flatwise.processes import Progress
from flatwise.tasks import load_data
from flatwise.theory import Ensemble, Observe, Paths, discrete, sam_sde, simulate
from flatwise.theory.fields import curvature_slope, gradient, sam, sam_expansion

PANELS = {
    "training_loss": "training loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "weight_norm": "norm of the weights",
    "gradient_norm": "gradient norm",
    "top_eigenvalue": "top eigenvalue",
}
RUNS = {"discrete": "SAM", "second": "second-order equation", "third": "third-order equation"}


SHARES = (3, 4, 6, 5)
"""Of the discrete method, the two equations and the order in the learning rate in the time, roughly."""


def measure(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """One initialisation: the orders in rho and in the learning rate, then the three processes with many noise paths."""
    study, stages = _Study(preset, seed), Stages(folder, {"preset": preset, "cell": cell, "seed": seed})
    lr, rho, steps = preset["lr"], preset["rho"], preset["steps"]
    found = stages.keep("orders", lambda: {"orders": study.orders_in_rho(), "identity": study.identity()})
    looks: dict[str, Any] = {"paths": preset["paths"], "seed": seed, "every": steps // preset["looks"]}

    def observe(part: int) -> Observe:
        seen, before = itertools.count(), sum(SHARES[:part]) * preset["looks"]
        return lambda x: (
            progress(before + SHARES[part] * next(seen), sum(SHARES) * preset["looks"]) or study.observed(x)
        )

    def method() -> Paths:
        return discrete(study.ensemble, sam(rho), lr, steps, observe=observe(0), **looks)

    def equation(part: int, order: int) -> Paths:
        return simulate(sam_sde(study.ensemble, lr, rho, order), steps * lr, observe=observe(part), **looks)

    found["discrete"] = stages.keep("discrete", lambda: _means(method(), lr))
    found["second"] = stages.keep("second", lambda: _means(equation(1, 2), lr))
    found["third"] = stages.keep("third", lambda: _means(equation(2, 3), lr))
    progress(sum(SHARES[:3]) * preset["looks"], sum(SHARES) * preset["looks"])
    return found | stages.keep("order-in-lr", lambda: {"order_in_lr": study.order_in_lr()})


class _Study:
    """A network, its data, and what is asked of them."""

    def __init__(self, preset: Values, seed: int) -> None:
        self.preset = preset
        size, count, side = preset["batch_size"], preset["batches"], preset["side"]
        task = load_data(preset["data"], seed=seed, subset=size * count)
        self.inputs, self.targets = _pooled(task.train_inputs, side), task.train_targets
        self.test = _pooled(task.test_inputs, side), task.test_targets
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _network(self.inputs.shape[1], preset["width"])
        self.batches = list(zip(self.inputs.split(size), self.targets.split(size), strict=True))
        self.ensemble = Ensemble(Objective(self.model, _loss, self.batches))
        self.here = self.ensemble.weights.unsqueeze(0)

    def orders_in_rho(self) -> dict[str, float]:
        """Of what the expansions leave of one step's mean over the batches: the slopes over rho."""
        radii = self.preset["radii"]
        left = {name: [self._left(rho, order) for rho in radii] for name, order in (("second", 2), ("third", 3))}
        return {name: _slope(radii, errors) for name, errors in left.items()}

    def order_in_lr(self) -> float:
        """Of the distance between the method and its third-order equation at a fixed time: full batch, so without noise.

        The equation is solved by Heun's scheme in small steps, and rho shrinks with the learning rate, so that what the
        expansion leaves out shrinks faster.
        """
        whole = Ensemble(Objective(self.model, _loss, [(self.inputs, self.targets)]))
        rates, apart = self.preset["rates"], []
        for lr in rates:
            rho, steps = self.preset["rho_per_lr"] * lr, round(self.preset["time"] / lr)
            taken = discrete(whole, sam(rho), lr, steps, observe=_nothing).last
            followed = simulate(sam_sde(whole, lr, rho), steps * lr, dt=lr / 4, scheme="heun", observe=_nothing).last
            apart.append(float((taken - followed).norm()))
        return _slope(rates, apart)

    def identity(self) -> float:
        """The relative error of: along the top eigenvector, the third derivative is the gradient of the eigenvalue."""
        x = self.here[0]
        _, vector = self._top(x, self.preset["converged"])
        found = self.ensemble.fields(lambda loss: lambda y: curvature_slope(loss, y, vector), self.here).mean(0)[0]
        length, rise = 1e-4, []
        direction = found / found.norm()
        for sign in (1, -1):
            value, _ = self._top(x + sign * length * direction, self.preset["converged"], start=vector)
            rise.append(sign * float(value))
        return abs(sum(rise) / (2 * length) / float(found.norm()) - 1)

    def observed(self, x: Tensor) -> Mapping[str, Tensor]:
        """The six panels."""
        outputs = vmap(lambda y: self._outputs(y, self.test[0]))(x)
        targets = self.test[1].expand(len(x), -1)
        return {
            "training_loss": self.ensemble.losses(x).mean(0),
            "test_loss": F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1),
            "test_accuracy": (outputs.argmax(2) == targets).double().mean(1),
            "weight_norm": x.norm(dim=1),
            "gradient_norm": self.ensemble.fields(gradient, x).mean(0).norm(dim=1),
            "top_eigenvalue": vmap(lambda y: self._top(y, self.preset["iterations"])[0])(x),
        }

    def _left(self, rho: float, order: int) -> float:
        both = self.ensemble.fields(sam(rho), self.here), self.ensemble.fields(sam_expansion(rho, order), self.here)
        return float((both[0] - both[1]).mean(0).norm())

    def _outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        names = [name for name, _ in self.model.named_parameters()]
        return functional_call(self.model, dict(zip(names, self.ensemble.parts(x), strict=True)), (inputs,))

    def _top(self, x: Tensor, iterations: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The largest eigenvalue of the Hessian of all training data and its eigenvector, by power iteration.

        On the Hessian plus a multiple of the identity, which keeps negative eigenvalues out of the way.
        """
        slope = grad(lambda y: F.cross_entropy(self._outputs(y, self.inputs), self.targets))
        vector = torch.ones_like(self.here[0]) if start is None else start
        vector, shift = vector / vector.norm(), self.preset["shift"]
        for _ in range(iterations):
            product = jvp(slope, (x,), (vector,))[1] + shift * vector
            vector = product / product.norm()
        return vector @ jvp(slope, (x,), (vector,))[1], vector


def judge(preset: Values, seeds: Sequence[Sequence[Values]]) -> Outcome:
    """Two orders in rho, one in the learning rate, and how much closer the third order is."""
    found = [cells[0] for cells in seeds]
    left = "What the expansion leaves of one step falls with this power of rho."
    criteria = [
        Criterion("order in rho, second", left, [f["orders"]["second"] for f in found], 1.9, 2.1),
        Criterion("order in rho, third", left, [f["orders"]["third"] for f in found], 2.85, 3.15),
        Criterion(
            "order in the learning rate",
            "The distance of the method from the third-order equation at a fixed time falls with this power; full batch.",
            [f["order_in_lr"] for f in found],
            0.85,
            1.15,
        ),
        Criterion(
            "third order closer by",
            "Distance of means over paths from those of the method, as a share of their range along the training, in the mean "
            "over the six panels: that of the second order less that of the third.",
            [fmean(_distance(f, "second", name) - _distance(f, "third", name) for name in PANELS) for f in found],
            0.0,
        ),
        Criterion(
            "identity",
            "Relative error of: along the top eigenvector, the third derivative is the gradient of the eigenvalue.",
            [f["identity"] for f in found],
            None,
            0.01,
            decisive=False,
        ),
    ]
    note = f"{preset['paths']} noise paths for each seed; a seed is an initialisation and a split of the data."
    return Outcome(criteria, [_panel(name, found) for name in PANELS], [note])


def _distance(found: Values, name: str, quantity: str) -> float:
    """The mean distance along the training, as a share of how much the method itself moves."""
    own, other = found["discrete"][quantity], found[name][quantity]
    width = max(own) - min(own)
    return fmean(abs(a - b) for a, b in zip(own, other, strict=True)) / width if width else 0.0


def _panel(name: str, found: Sequence[Values]) -> Panel:
    steps = found[0]["discrete"]["steps"]
    lines = [band(label, steps, [f[run][name] for f in found]) for run, label in RUNS.items()]
    return Panel(PANELS[name], "steps", PANELS[name], lines)


def _means(paths: Paths, lr: float) -> Values:
    """The means over paths, and the standard errors of them."""
    found: Values = {name: paths.mean(name).tolist() for name in PANELS}
    found["standard_errors"] = {name: paths.standard_error(name).tolist() for name in PANELS}
    return found | {"steps": (paths.times / lr).tolist()}


def _slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Of the logarithm of the errors over that of the sizes, by least squares."""
    return fit([math.log(s) for s in sizes], [math.log(e) for e in errors])[0]


def _loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _network(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 10)).double()


def _pooled(images: Tensor, side: int) -> Tensor:
    """Images averaged to `side` x `side` pixels, as rows."""
    return F.adaptive_avg_pool2d(images.double(), side).flatten(1)


def _nothing(x: Tensor) -> Mapping[str, Tensor]:
    return {"": torch.zeros(len(x))}


_SMALL: Values = {
    "data": "digits",
    "side": 4,
    "width": 16,
    "batch_size": 32,
    "batches": 16,
    "lr": 0.2,
    "rho": 0.3,
    "steps": 400,
    "paths": 16,
    "looks": 20,
    "radii": [0.4, 0.2, 0.1, 0.05],
    "rates": [0.2, 0.1, 0.05, 0.025],
    "rho_per_lr": 1.0,
    "time": 2.0,
    "iterations": 60,
    "converged": 400,
    "shift": 5.0,
}

THIRD_ORDER_SDE = Claim(
    name="third-order-sde",
    statement="SAM is followed more closely by its third-order differential equation than by the second-order one.",
    source="arXiv 2501.12666, the figure on the fidelity of the equations (settings not published: these are ours)",
    protocol=(
        "A fully connected tanh network in float64, cross-entropy; each mini-batch is one of a fixed set, drawn at "
        "random in every step. Orders: slopes of the logarithm of errors, in rho at the initial weights, in the "
        "learning rate over a fixed time without noise. Fidelity: the method, and Euler-Maruyama with steps of the "
        "learning rate for both equations, noise drawn independently of the method's; six quantities at evenly spaced "
        "times. Bands: all seeds. At the small scale: digits pooled to 4x4, 16 hidden units, 16 batches of 32, "
        "learning rate 0.2, rho 0.3, 400 steps, 16 paths; for the order in the learning rate rho equals it. At the "
        "larger one: MNIST, 100 hidden units, 100 batches of 128, learning rate 0.05, rho 0.1, 5,000 steps, 64 paths."
    ),
    scales={
        "smoke": _SMALL
        | {"width": 3, "batches": 3, "steps": 4, "paths": 2, "looks": 2, "rates": [0.2, 0.1], "time": 0.2}
        | {"iterations": 3, "converged": 20},
        "small": _SMALL,
        "paper": _SMALL
        | {
            "data": "mnist",
            "side": 28,
            "width": 100,
            "batch_size": 128,
            "batches": 100,
            "lr": 0.05,
            "rho": 0.1,
            "steps": 5000,
            "paths": 64,
        },
    },
    seeds={"smoke": 2, "small": 5, "paper": 5},
    measure=measure,
    judge=judge,
)
