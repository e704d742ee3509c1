"""The table and the verdict of `flatwise.experiments.free_eigenvector`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from flatwise.curvature.estimate import mean_of

Run = Mapping[str, Any]

MARGIN, DEARER = 0.05, 1.1
"""The free eigenvector works where its |cos| is not below that of every-10 by more, at no more times SAM's evaluations."""

HEAD = (
    "network",
    "arm",
    r"\|cos\|, median",
    r"\|cos\|, mean over seeds",
    "less every-10",
    "of the batch",
    "training mode",
    "top eigenvalue",
    "in training mode",
    "accuracy, %",
    "evaluations",
)


def table(runs: Sequence[Run]) -> str:
    """Markdown: a row per network and arm, means over seeds with 95 % intervals, and a verdict per network."""
    keys = dict.fromkeys((run["network"], run["arm"]) for run in sorted(runs, key=lambda run: run["network"]))
    rows = [_row(network, arm, runs) for network, arm in keys]
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    return "\n".join([*lines, "", *(verdict(network, runs) for network in dict.fromkeys(n for n, _ in keys))]) + "\n"


def verdict(network: str, runs: Sequence[Run]) -> str:
    """Whether the rule written down before is met on a network."""
    free, periodic = _of(runs, network, "free"), _of(runs, network, "every-10")
    if not free or not periodic:
        return f"{network}: no verdict, runs are missing"
    ours, theirs = _median(free), _median(periodic)
    times = max(run["evaluations"] for run in free) / 2
    holds = ours >= theirs - MARGIN and times <= DEARER + 0.005  # rounded as shown
    costs = f"{times:.3f} times SAM's evaluations"
    return f"{network}: {'works' if holds else 'does not work'} ({ours:.2f} against {theirs:.2f}, at {costs})"


def _row(network: str, arm: str, runs: Sequence[Run]) -> list[str]:
    mine, periodic = _of(runs, network, arm), _of(runs, network, "every-10")
    tracks = bool(mine[0]["cosines"])
    return [
        network,
        arm,
        f"{_median(mine):.2f}" if tracks else "",
        _shown([median(run["cosines"]) for run in mine], 2) if tracks else "",
        _difference(mine, periodic) if tracks and arm != "every-10" else "",
        f"{median(c for run in mine for c in run['batch_cosines']):.2f}" if tracks else "",
        _of_each(mine, "training_mode_cosine", 2),
        _of_each(mine, "top_eigenvalue", 1 if mine[0]["top_eigenvalue"] > 10 else 2),
        _of_each(mine, "training_mode_eigenvalue", 1),
        _shown([100 * run["test_accuracy"] for run in mine], 1),
        f"{max(run['evaluations'] for run in mine):.2f}",
    ]


def _of(runs: Sequence[Run], network: str, arm: str) -> list[Run]:
    found = [run for run in runs if (run["network"], run["arm"]) == (network, arm)]
    return sorted(found, key=lambda run: run["seed"])


def _median(runs: Sequence[Run]) -> float:
    return median(c for run in runs for c in run["cosines"])


def _difference(mine: Sequence[Run], theirs: Sequence[Run]) -> str:
    """Paired over the seeds that both have."""
    others = {run["seed"]: median(run["cosines"]) for run in theirs}
    return _shown([median(r["cosines"]) - others[r["seed"]] for r in mine if r["seed"] in others], 2, sign="+")


def _of_each(runs: Sequence[Run], name: str, digits: int) -> str:
    values = [run[name] for run in runs]
    return "" if None in values else _shown(values, digits)


def _shown(values: Sequence[float], digits: int, sign: str = "") -> str:
    """The mean, and half the width of its interval where there are several values."""
    if not values:
        return ""
    mean = mean_of(torch.tensor(values, dtype=torch.float64), products=0)
    number = f"{mean.value:{sign}.{digits}f}"
    return number if len(values) == 1 else f"{number} ± {mean.interval[1] - mean.value:.{digits}f}"
