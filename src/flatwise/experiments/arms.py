"""Arms from method names, and the control that a comparison with Eigen-SAM needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flatwise.experiments.comparison import Arm
from flatwise.training import Settings, TrainConfig
from flatwise.training.config import METHOD_SETTINGS
from flatwise.training.setup import method_settings

LABELS = {
    "sgd": "SGD",
    "sam": "SAM",
    "eigen-sam": "Eigen-SAM",
    "sam-equal-norm": "SAM at equal norm",
    "reverse-sam": "Reverse-SAM",
    "gradient-norm": "Gradient norm",
}
PASSES = {"sgd": 1.0}
"""Evaluations per step, roughly, where they are not two."""

SETTINGS_OF_METHODS = (*METHOD_SETTINGS, "rho_schedule")
"""They go to the methods that have them."""

PAIRS = (("eigen-sam", "sam"), ("eigen-sam", "sam-equal-norm"))
"""Comparisons that interest beside those with the baseline."""


def arms_of(methods: Sequence[str], settings: Settings, *, equal_norm: bool = True) -> list[Arm]:
    """One arm per method, each with those of the settings that it has.

    Args:
        methods: names, each once.
        settings: shared by all; those of methods, such as rho, go to the methods that have them.
        equal_norm: add, when eigen-sam is among the methods, SAM at its mean displacement norm: Eigen-SAM's displacement is
            longer than rho, and a longer SAM is flatter too.

    Raises:
        ValueError: an unknown method (the nearest is named), one that comes twice, or a setting that none of them has.
    """
    if len(set(methods)) < len(methods):
        raise ValueError(f"each method is compared once, but {', '.join(methods)} names one twice")
    for name in _given(settings):
        if not any(name in method_settings(method) for method in methods):
            raise ValueError(f"{name} has no effect with {', '.join(methods)}; leave it out")
    arms = [_arm(method, settings) for method in methods]
    return [*arms, equal_norm_arm(settings)] if equal_norm and "eigen-sam" in methods else arms


def equal_norm_arm(settings: Settings) -> Arm:
    """The control: SAM whose displacement is as long as Eigen-SAM's with the same seed, as measured there."""
    arm = _arm("sam", settings)
    return Arm("sam-equal-norm", LABELS["sam-equal-norm"], arm.config, "control", "eigen-sam", arm.weight)


def pairs_of(arms: Sequence[Arm], baseline: str) -> list[tuple[str, str]]:
    """The differences to judge: those of interest, and every arm against the baseline."""
    names = [arm.name for arm in arms]
    of_interest = [pair for pair in PAIRS if set(pair) <= set(names)]
    return [*of_interest, *((name, baseline) for name in names if name != baseline and (name, baseline) not in PAIRS)]


def baseline_of(arms: Sequence[Arm]) -> str:
    """What the others are compared with: SGD if it is there, else the first."""
    return next((arm.name for arm in arms if arm.name == "sgd"), arms[0].name)


def _arm(method: str, settings: Settings) -> Arm:
    values: dict[str, Any] = asdict(settings)
    foreign = [name for name in SETTINGS_OF_METHODS if name not in method_settings(method)]
    values |= {name: getattr(Settings, name) for name in foreign}
    config = TrainConfig(method=method, **values)
    return Arm(method, LABELS.get(method, method), config, weight=PASSES.get(method, 2.0))


def _given(settings: Settings) -> list[str]:
    return [name for name in SETTINGS_OF_METHODS if getattr(settings, name) != getattr(Settings, name)]
