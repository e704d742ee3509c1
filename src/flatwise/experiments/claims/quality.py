"""How cheaply the accuracy of full SAM can be had: test accuracy against gradient evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from flatwise.experiments.claims.claim import Claim, Criterion, Line, Outcome, Panel, Values
from flatwise.experiments.claims.trainings import arm_trainings, train_arms

MARGIN = 0.5
"""Points of test accuracy that do not matter: ours."""

_RHO = {"rho": 0.1}
_FAMILIES: Mapping[str, Mapping[str, Values]] = {
    "SGD": {"SGD": {"method": "sgd"}},
    "SAM": {"SAM": {"method": "sam"} | _RHO},
    "late-phase SAM": {
        f"late SAM, from {start:g}": {"method": "late-sam", "hyper": [f"start={start}"]} | _RHO
        for start in (0.9, 0.75, 0.5, 0.25)
    },
    "interval SAM": {f"SAM every {every}": {"method": "interval-sam", "every": every} | _RHO for every in (10, 5, 2)},
    "LookSAM": {f"LookSAM every {every}": {"method": "looksam", "every": every} | _RHO for every in (10, 5, 2)},
    "Momentum-SAM": {f"Momentum-SAM {rho:g}": {"method": "momentum-sam", "rho": rho} for rho in (0.1, 0.3, 1.0)},
    "Eigen-SAM, free eigenvector": {"Eigen-SAM, free": {"method": "eigen-sam", "hyper": ["source=free"]} | _RHO},
}
_ARMS = {label: settings for family in _FAMILIES.values() for label, settings in family.items()}

_SMALL: Values = {
    "shared": {"curvature": False, "probe_every": 0},
    "arms": _ARMS,
    "cells": [
        {"data": "digits", "label_noise": 0.4, "epochs": 40},
        {"data": "digits", "label_noise": 0.0, "epochs": 40},
    ],
}


def judge(preset: Values, seeds: Sequence[Sequence[Values]]) -> Outcome:
    """The cheapest arm that is good enough on every other seed, judged on the seeds between them."""
    criteria: list[Criterion] = []
    between = list(range(1, len(seeds), 2))
    for i, cell in enumerate(preset["cells"]):
        arms = [found[i] for found in seeds]
        others, task = [arms[place] for place in between], _task(cell)
        chosen = _cheapest(arms[::2])
        meaning = (
            f"{chosen}, chosen on seeds 0, 2 ...: the cheapest arm within {MARGIN} points of SAM there. Test accuracy less "
            "SAM's, in points, on seeds 1, 3 ..."
        )
        criteria.append(
            Criterion(f"chosen less SAM, {task}", meaning, _differences(others, chosen), -MARGIN, seeds=between)
        )
        cost = [_evaluations(one, chosen) / _evaluations(one, "SAM") for one in others]
        criteria.append(
            Criterion(f"its evaluations, {task}", "As a share of SAM's.", cost, None, 0.75, exact=True, seeds=between)
        )
        criteria += [_compared(task, label, arms) for label in preset["arms"] if label != "SAM"]
    return Outcome(criteria, [_panel(cell, [found[i] for found in seeds]) for i, cell in enumerate(preset["cells"])])


def _compared(task: str, label: str, arms: Sequence[Values]) -> Criterion:
    cost = fmean(_evaluations(one, label) / _evaluations(one, "SAM") for one in arms)
    meaning = f"Test accuracy less SAM's, in points, at {cost:.2f} of SAM's evaluations."
    return Criterion(f"{label} less SAM, {task}", meaning, _differences(arms, label), decisive=False)


def _cheapest(arms: Sequence[Values]) -> str:
    """Of the arms whose mean accuracy is within the margin of SAM's, the one with the fewest evaluations."""
    good = [label for label in arms[0] if fmean(_differences(arms, label)) >= -MARGIN]
    return min(good, key=lambda label: fmean(_evaluations(one, label) for one in arms))


def _differences(arms: Sequence[Values], label: str) -> list[float]:
    return [_accuracy(one, label) - _accuracy(one, "SAM") for one in arms]


def _accuracy(arms: Values, label: str) -> float:
    return 100 * arms[label]["summary"].get("test_accuracy", float("nan"))


def _evaluations(arms: Values, label: str) -> float:
    return arms[label]["summary"]["evaluations"]


def _task(cell: Values) -> str:
    noise = f", {100 * cell['label_noise']:.0f} % wrong labels" if cell.get("label_noise") else ""
    return f"{cell['data']}{noise}"


def _panel(cell: Values, arms: Sequence[Values]) -> Panel:
    """Accuracy beside SAM's over evaluations, a line for each family of arms."""
    there = {name: [label for label in family if label in arms[0]] for name, family in _FAMILIES.items()}
    lines = [_line(name, labels, arms) for name, labels in there.items() if labels]
    levels = {f"{MARGIN} points less": -MARGIN}
    return Panel(_task(cell), "gradient evaluations", "test accuracy less SAM's, points", lines, levels=levels)


def _line(name: str, labels: Sequence[str], arms: Sequence[Values]) -> Line:
    points = [_differences(arms, label) for label in labels]
    costs = [fmean(_evaluations(one, label) for one in arms) for label in labels]
    low, high = [min(p) for p in points], [max(p) for p in points]
    style = "line" if len(set(costs)) > 1 else "points"
    return Line(name, costs, [fmean(p) for p in points], low, high, style)


TIME_TO_QUALITY = Claim(
    name="time-to-quality",
    statement=(
        f"On digits, with wrong labels and without, the accuracy of full SAM, less at most {MARGIN} points, is had with at "
        "most three quarters of its gradient evaluations."
    ),
    source=(
        "ours; the arms are those of arXiv 2410.10373 (late-phase), 2203.02714 (LookSAM), 2401.12033 (Momentum-SAM), and "
        "Eigen-SAM with the free eigenvector"
    ),
    protocol=(
        "Digits with and without wrong labels, a fully connected ReLU network, SGD with momentum 0.9, learning rate 0.05 on "
        "a cosine, the same steps for all. SAM with rho 0.1 all the time, late, now and then; LookSAM; Momentum-SAM with "
        "three radii, since its radius is no SAM's; Eigen-SAM with the free eigenvector. None is tuned. The cheapest arm "
        "that is good enough is chosen on one half of the seeds and judged on the other, so that the choice does not "
        "flatter it."
    ),
    scales={
        "smoke": _SMALL
        | {"cells": [{"data": "digits", "subset": 64, "epochs": 2}], "arms": {k: _ARMS[k] for k in ("SGD", "SAM")}},
        "small": _SMALL,
    },
    seeds={"smoke": 2, "small": 10},
    measure=train_arms,
    trainings=arm_trainings,
    judge=judge,
)
