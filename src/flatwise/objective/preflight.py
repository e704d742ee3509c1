"""How an objective can be differentiated: found out on a few samples, so that no product is silently wrong.

Some operations have no second derivative and say so, such as fused attention. An autograd function of somebody's own may have
none, or a wrong one, without saying so: `autograd.grad` does not notice `once_differentiable`. Where there is one, or the
product is zero, it is compared with differences of gradients. (Not everywhere: differences meet the kinks of ReLU, and would be
apart without anything being wrong.) Hooks on gradients are watched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from flatwise import vectors as V
from flatwise.objective.averages import all_agree
from flatwise.objective.batches import samples
from flatwise.objective.differences import central, reach
from flatwise.objective.hooks import Hooks
from flatwise.objective.looks import Look, look
from flatwise.vectors import Vector

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective

TRIAL = 2
"""Samples of a trial: with one, BatchNorm has no variance."""

ENOUGH = 32
"""Samples on which a product says something about the others."""

NOISE = 100.0
"""Of a gradient, in units of the machine epsilon."""

AGREEMENT = 0.05
"""How far, relative to its norm, a product may be from the nearest of some differences of gradients."""


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        twice: whether the loss can be differentiated twice.
        reason: why, or why not, in words.
        draws: whether the loss draws random numbers of torch, as dropout does; every evaluation sees the same ones.
        autocast: the dtype under whose autocast the loss computes, whoever opens it; None without.
    """

    twice: bool
    reason: str
    draws: bool = False
    autocast: str | None = None


def preflight(objective: Objective) -> Preflight:
    """Find out, with a few evaluations on a few samples; all processes come to the same result.

    Raises:
        RuntimeError: the gradients of a sharded model are not those of its loss.
    """
    some = few(objective)
    if objective.in_step:
        return _sharded(some)
    found = Preflight(True, "no samples here") if not some.data else _trial(some.alone())
    if all_agree(objective.groups, found.twice, objective.device) or not found.twice:
        return found
    return replace(found, twice=False, reason="another process could not differentiate twice")


def few(objective: Objective, *, share: int | None = None) -> Objective:
    """The objective on some samples of the first batch, or on all of it where the loss will not have so few.

    Args:
        objective: any.
        share: one in so many samples, but at least `ENOUGH`; None: as few as possible.
    """
    with objective.evaluation():
        batch = objective.first()
    whole = objective.uncut().on([] if batch is None else [batch])
    if share == 1:
        return whole
    small = whole.on([_beginning(whole, batch, share) for batch in whole.data])
    return small if all_agree(objective.groups, _works(small), objective.device) else whole


def _beginning(objective: Objective, batch: Any, share: int | None) -> Any:
    try:
        return objective.beginning(batch, TRIAL if share is None else max(ENOUGH, samples(batch) // share))
    except ValueError:  # nothing in it that could be cut
        return batch


def _works(objective: Objective) -> bool:
    trial = objective if objective.in_step else objective.alone()
    try:
        trial.value()
    except Exception:  # whatever it is, the whole batch will show it
        return not trial.data
    return True


def _trial(objective: Objective) -> Preflight:
    first = look(objective)
    direction = _direction(objective)
    try:
        with Hooks(objective.parameters()) as hooks:
            product = objective.differentiated_twice(direction)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return _found(False, f"it cannot be differentiated twice: {first_sentence(error)}", first)
    if hooks.cut:
        return _found(False, "a hook on a gradient computes without a graph (under no_grad, or by detach)", first)
    doubted = first.custom or not V.norm(product)
    if doubted and (apart := _disagreement(objective, direction, product)) > AGREEMENT:
        return _found(False, f"{_names(first.custom)} has no right second derivative: {apart:.0%} off", first)
    return _found(True, _how(first.operations), first)


def _found(twice: bool, reason: str, first: Look) -> Preflight:
    return Preflight(twice, reason, first.draws, first.autocast)


def _direction(objective: Objective) -> Vector:
    gradient = objective.gradient()
    steep = bool(V.norm(gradient) > 0)
    return V.unit(gradient if steep else V.random_like(gradient, objective.seed))


def _disagreement(objective: Objective, direction: Vector, product: Vector) -> float:
    """The relative distance of the product from the nearest difference: short ones are noisy, long ones meet kinks."""
    longest = reach(objective.weights)
    noise = NOISE * V.epsilon(objective.weights) * float(V.norm(objective.gradient()))
    lengths = [longest * factor for factor in (1, 1 / 4, 1 / 16)]
    return min(_apart(central(objective, direction, length), product, noise / length) for length in lengths)


def _apart(difference: Vector, product: Vector, noise: float) -> float:
    """Relative to the longer of the two, or to noise where that is more."""
    size = max(float(V.norm(difference)), float(V.norm(product)), noise)
    distance = float(V.norm(V.add(difference, product, -1.0))) / size if size else 0.0
    return distance if math.isfinite(distance) else 0.0


def first_sentence(error: Exception) -> str:
    """Of what an exception says, without the full stop."""
    return str(error).split("\n")[0].split(". ")[0].rstrip(".")


def _names(custom: Sequence[str]) -> str:
    if not custom:
        return "something that the graph does not show"
    return "the autograd function " + " or ".join(name.removesuffix("Backward") for name in custom)


def _how(operations: frozenset[str]) -> str:
    """What was done differently from training, so that there is a second derivative."""
    notes = ["differentiated twice"]
    if any("ScaledDotProduct" in name for name in operations):
        notes.append("attention by its formula in place of the fused kernel")
    if any("CudnnRnn" in name for name in operations):
        notes.append("recurrent layers without cuDNN")
    return "; ".join(notes)


def _sharded(objective: Objective) -> Preflight:
    """Sharded parameters have one gradient only, that of `backward`; it must be that of the loss."""
    value, gradient = objective.value_and_gradient()
    length = 2 * reach(objective.weights)
    direction = V.unit(gradient)
    with objective.displaced() as place:
        place.to(direction, length)
        ahead = float(objective.value())
        place.to(direction, -length)
        behind = float(objective.value())
    found, expected = (ahead - behind) / (2 * length), float(V.norm(gradient))
    noise = 1e3 * V.epsilon(objective.weights) * abs(float(value)) / length
    if abs(found - expected) > 0.1 * abs(expected) + noise:
        raise RuntimeError(
            f"the sharded gradient has norm {expected:.3g}, but the loss changes by {found:.3g} along it; is gradient "
            "synchronisation switched off (set_requires_gradient_sync), or a gradient divide factor set? Reset it while measuring"
        )
    return Preflight(False, "FSDP2 shards the parameters, and only backward reaches them")
