"""Arms from method names, and the control that a comparison with Eigen-SAM needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flatwise.experiments.comparison import Arm
from flatwise.experiments.labels import label
from flatwise.training import Settings, TrainConfig, hyper
from flatwise.training.config import SHORTCUTS, nearest
from flatwise.training.setup import build_method, evaluations_in, method_settings, takes_parts

DEAR, MANY = 2.0, 1000
"""Evaluations per step, roughly, where they depend on the data; elsewhere they are the mean over many."""

OF_METHODS = (*SHORTCUTS, "rho_schedule", "parts")
"""Settings that go to the methods that have them, beside the words of `hyper`."""

PAIRS = (("eigen-sam", "sam"), ("eigen-sam", "sam-equal-norm"))
"""Comparisons that interest first."""


def arms_of(methods: Sequence[str], settings: Settings, *, equal_norm: bool = True) -> list[Arm]:
    """One arm per method, each with those of the settings that it has.

    Args:
        methods: names, each once.
        settings: shared by all; those of methods, such as rho, go to the methods that have them.
        equal_norm: add, when eigen-sam is among the methods, SAM at its mean displacement norm: Eigen-SAM's displacement is
            longer than rho, and a longer SAM is flatter too.

    Raises:
        ValueError: an unknown method or hyper-parameter (the nearest is named), a method that comes twice, or a setting that
            none of them has.
    """
    if len(set(methods)) < len(methods):
        raise ValueError(f"each method is compared once, but {', '.join(methods)} names one twice")
    known = {method: taken(method) for method in methods}
    for name in _given(settings):
        if not any(name in names for names in known.values()):
            raise ValueError(f"{name} has no effect with {', '.join(methods)}; leave it out")
    _check_words(methods, settings)
    arms = [arm_of(method, settings) for method in methods]
    return [*arms, equal_norm_arm(settings)] if equal_norm and "eigen-sam" in methods else arms


def equal_norm_arm(settings: Settings) -> Arm:
    """The control: SAM whose displacement is as long as Eigen-SAM's with the same seed, as measured there."""
    arm = arm_of("sam", settings)
    return Arm("sam-equal-norm", label("sam-equal-norm"), arm.config, "control", "eigen-sam", arm.weight)


def pairs_of(arms: Sequence[Arm], baseline: str) -> list[tuple[str, str]]:
    """The differences to judge: those of interest, every arm against the baseline, and every method against SAM."""
    names = [arm.name for arm in arms]
    pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
    pairs += [(name, baseline) for name in names if name != baseline]
    if "sam" in names:
        pairs += [(arm.name, "sam") for arm in arms if arm.role == "method" and arm.name not in ("sam", baseline)]
    return list(dict.fromkeys(pairs))


def baseline_of(arms: Sequence[Arm]) -> str:
    """What the others are compared with: SGD if it is there, else the first."""
    return next((arm.name for arm in arms if arm.name == "sgd"), arms[0].name)


def arm_of(method: str, settings: Settings) -> Arm:
    """The arm of a method, with those of the settings that it has."""
    values: dict[str, Any] = asdict(settings)
    values |= {name: getattr(Settings, name) for name in OF_METHODS if name not in taken(method)}
    own = _own(method, settings)  # goes before the flag
    values |= {name: None for name in own if name in SHORTCUTS} | {"hyper": hyper.write(own)}
    config = TrainConfig(method=method, **values)
    return Arm(method, label(method), config, weight=(evaluations_in(config, MANY) or DEAR * MANY) / MANY)


def _own(method: str, settings: Settings) -> dict[str, hyper.Value]:
    """What words of `hyper` give to a method."""
    known = method_settings(method)
    return {name: value for name, value in hyper.for_method(settings.hyper, method).items() if name in known}


def taken(method: str) -> set[str]:
    """The settings that the method of this name has, such as rho, and with it rho_schedule."""
    built = build_method(TrainConfig(method=method))
    more = {"rho_schedule"} if hasattr(built, "rho") else set[str]()
    return {*method_settings(method), *more, *({"parts"} if takes_parts(built) else ())}


def _check_words(methods: Sequence[str], settings: Settings) -> None:
    """Refuse words of `hyper` that reach nobody."""
    for entry in map(hyper.read, settings.hyper):
        if entry.method is not None and entry.method not in methods:
            raise ValueError(f"hyper names {entry.method!r}, which is not compared{nearest(entry.method, methods)}")
        reached = [entry.method] if entry.method else methods
        known = {name for method in reached for name in method_settings(method)}
        if entry.name not in known:
            raise ValueError(f"{entry.name} has no effect with {', '.join(reached)}{nearest(entry.name, known)}")


def _given(settings: Settings) -> list[str]:
    return [name for name in OF_METHODS if getattr(settings, name) != getattr(Settings, name)]
