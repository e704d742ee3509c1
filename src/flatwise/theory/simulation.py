"""Paths of a stochastic differential equation, and of the discrete method beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flatwise.methods.checks import one_of, positive, positive_integer, whole
from flatwise.objective import Objective
from flatwise.theory.brownian import Brownian
from flatwise.theory.ensemble import Ensemble, Field, ensemble_of
from flatwise.theory.sde import SDE

Observe: TypeAlias = Callable[[Tensor], Mapping[str, Tensor]]
"""From the paths [P, d] to numbers by name, one for each path [P]."""


@dataclass(frozen=True)
class Scheme:
    """How a step in time is made, and how fast it converges.

    Attributes:
        step: from the equation, the paths [P, d], the step in time and the increments [P, M] to the next paths.
        strong: the order of the error of single paths.
        weak: the order of the error of means over paths.
        without_noise: the order where there is no noise; with little, its error dominates at larger steps.
    """

    step: Callable[[SDE, Tensor, float, Tensor], Tensor]
    strong: float
    weak: float
    without_noise: float


def euler_maruyama(sde: SDE, x: Tensor, dt: float, dw: Tensor) -> Tensor:
    """`x + drift * dt + noise`."""
    drift, noise = sde.coefficients(x)
    return x + drift * dt + torch.einsum("kpd,pk->pd", noise, dw)


def heun(sde: SDE, x: Tensor, dt: float, dw: Tensor) -> Tensor:
    """The drift averaged over both ends of an Euler-Maruyama step; the noise is that of its beginning, as Ito's calculus asks.

    For small noise its weak error is `O(dt^2 + lr * dt)` (Milstein and Tretyakov, 1997), against `O(dt)` of
    Euler-Maruyama.
    """
    drift, noise = sde.coefficients(x)
    move = torch.einsum("kpd,pk->pd", noise, dw)
    return x + (drift + sde.drift(x + drift * dt + move)) * (dt / 2) + move


SCHEMES = {
    "euler-maruyama": Scheme(euler_maruyama, strong=0.5, weak=1.0, without_noise=1.0),
    "heun": Scheme(heun, strong=0.5, weak=1.0, without_noise=2.0),
}
"""The schemes by name."""


@dataclass(frozen=True)
class Paths:
    """What was observed of some paths.

    Attributes:
        times: at which, in units of the equation: a step of the method takes the learning rate. [T].
        observed: by name, for each time and path, [T, P].
        last: the paths at the last time, [P, d].
    """

    times: Tensor
    observed: dict[str, Tensor]
    last: Tensor

    def mean(self, name: str) -> Tensor:
        """The mean over paths, [T]."""
        return self.observed[name].mean(1)

    def standard_error(self, name: str) -> Tensor:
        """That of the mean, [T]; infinite for a single path."""
        values = self.observed[name]
        return (
            values.std(1) / values.shape[1] ** 0.5 if values.shape[1] > 1 else torch.full_like(values[:, 0], torch.inf)
        )


def simulate(
    sde: SDE,
    time: float,
    *,
    paths: int = 1,
    dt: float | None = None,
    resolution: float | None = None,
    scheme: str = "euler-maruyama",
    seed: int = 0,
    observe: Observe | None = None,
    every: int = 1,
    start: Tensor | None = None,
) -> Paths:
    """Simulate an equation.

    Args:
        sde: the equation.
        time: until when; a number of steps of the method times its learning rate.
        paths: how many, >= 1; all begin at the model's weights.
        dt: the step in time; default: the learning rate.
        resolution: of the Brownian motions, of which dt is a multiple: simulations with the same one, paths and seed
            see the same noise. Default: dt.
        scheme: "euler-maruyama" or "heun"; `SCHEMES` tells their orders.
        seed: of the noise, >= 0.
        observe: what to look at; default: the loss over all batches, "loss".
        every: steps between two looks, >= 1; the last one is looked at too.
        start: where the paths begin, [d] or [P, d]; default: at the model's weights.

    Raises:
        TypeError, ValueError: an argument is out of its range, or time is no multiple of dt, or dt none of resolution.
    """
    dt = sde.lr if dt is None else dt
    resolution = dt if resolution is None else resolution
    positive("dt", dt)
    positive("resolution", resolution)
    one_of("scheme", scheme, list(SCHEMES))
    count, fine = _multiple("time", time, "dt", dt), _multiple("dt", dt, "resolution", resolution)
    x = _start(sde.ensemble, start, paths)
    noise = Brownian(seed, (paths, sde.ensemble.count), resolution, x.dtype)

    def steps(x: Tensor) -> Iterator[Tensor]:
        for i in range(count):
            x = SCHEMES[scheme].step(sde, x, dt, noise.increment(i * fine, fine).to(x))
            yield x

    return _followed(x, steps(x), count, dt, observe or _loss(sde.ensemble), every, seed)


def discrete(
    ensemble: Objective | Ensemble,
    field: Field,
    lr: float,
    steps: int,
    *,
    paths: int = 1,
    seed: int = 0,
    observe: Observe | None = None,
    every: int = 1,
    start: Tensor | None = None,
) -> Paths:
    """The method itself: at each step and for each path, a batch drawn at random, and `x <- x - lr * b_k(x)`.

    Args:
        ensemble: the losses, or an objective whose batches are the mini-batches.
        field: `b_k`, such as `fields.sam(rho)`.
        lr: the learning rate; > 0.
        steps: how many; >= 1.
        paths, seed, observe, every, start: as for `simulate`.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """
    positive("lr", lr)
    positive_integer("steps", steps)
    ensemble = ensemble_of(ensemble)
    x = _start(ensemble, start, paths)
    generator = torch.Generator().manual_seed(seed)

    def taken(x: Tensor) -> Iterator[Tensor]:
        for _ in range(steps):
            which = torch.randint(ensemble.count, (paths,), generator=generator).to(x.device)
            x = x - lr * ensemble.drawn(field, x, which)
            yield x

    return _followed(x, taken(x), steps, lr, observe or _loss(ensemble), every, seed)


def _followed(
    x: Tensor, steps: Iterator[Tensor], count: int, dt: float, observe: Observe, every: int, seed: int
) -> Paths:
    positive_integer("every", every)
    whole("seed", seed)
    looks, times = [observe(x)], [0.0]
    for i, x in enumerate(steps, 1):
        if i % every == 0 or i == count:
            looks.append(observe(x))
            times.append(i * dt)
    observed = {name: torch.stack([look[name] for look in looks]) for name in looks[0]}
    return Paths(torch.tensor(times, dtype=torch.float64), observed, x)


def _loss(ensemble: Ensemble) -> Observe:
    return lambda x: {"loss": ensemble.losses(x).mean(0)}


def _start(ensemble: Ensemble, start: Tensor | None, paths: int) -> Tensor:
    positive_integer("paths", paths)
    begin = ensemble.weights if start is None else start
    if begin.shape[-1:] != ensemble.weights.shape or begin.ndim > 2 or (begin.ndim == 2 and len(begin) != paths):
        raise ValueError(
            f"start must be [{len(ensemble.weights)}] or [{paths}, {len(ensemble.weights)}], got {list(begin.shape)}"
        )
    return begin.expand(paths, -1).clone()


def _multiple(name: str, whole_: float, of: str, part: float) -> int:
    count = round(whole_ / part)
    if count < 1 or abs(count * part - whole_) > 1e-6 * whole_:
        raise ValueError(f"{name} must be a multiple of {of}, got {name}={whole_:g}, {of}={part:g}")
    return count
