"""Claims about trained networks: arms of settings, trained with the same seeds, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from flatwise.experiments.claims.claim import Criterion, Line, Panel, Values
from flatwise.experiments.claims.stages import stage_of
from flatwise.processes import Progress
from flatwise.runs import Run
from flatwise.statistics import Interval, geometric_interval, mean_interval
from flatwise.training import TrainConfig, train

KEPT = ("train_loss", "test_loss", "test_accuracy", "top_eigenvalue", "alignment_displacement", "alignment_gradient")
"""What is kept of the measurements along a training, where it is there."""


def train_arms(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """All arms of the preset with one seed, one after the other; each continues where it was interrupted.

    The preset has `shared` settings, those of each of the `arms` by label, and in `norm_of` the arms that run at the
    mean displacement norm of another one. A cell holds settings of its own for all arms.
    """
    found: Values = {}
    for i, (label, settings) in enumerate(_settings(preset, cell, seed).items()):
        if label in preset.get("norm_of", {}):
            settings["rho"] = found[preset["norm_of"][label]]["summary"]["mean_displacement_norm"]
        run = train(
            TrainConfig.from_dict(settings), folder / f"arm-{i}", progress=stage_of(progress, i, len(preset["arms"]))
        )
        found[label] = _told(run)
    return found


def arm_trainings(preset: Values, cell: Values) -> list[TrainConfig]:
    """The settings with which `train_arms` trains; those that run at the norm of another, with their own."""
    return [TrainConfig.from_dict(settings) for settings in _settings(preset, cell, seed=0).values()]


def difference(
    name: str,
    meaning: str,
    seeds: Sequence[Sequence[Values]],
    a: str,
    b: str,
    what: Callable[[Values], float],
    **bounds: float,
) -> Criterion:
    """A criterion on `what` of arm a less `what` of arm b, seed by seed."""
    values = [what(cells[0][a]) - what(cells[0][b]) for cells in seeds]
    return Criterion(name, meaning, values, bounds.get("least"), bounds.get("most"))


def final(name: str, factor: float = 1.0) -> Callable[[Values], float]:
    """A number of an arm at its end; NaN where it diverged."""
    return lambda arm: factor * arm["summary"].get(name, math.nan)


def logarithm(name: str) -> Callable[[Values], float]:
    """The logarithm to base 2 of such a number: a difference of 1 is a factor of 2."""
    return lambda arm: math.log2(value) if (value := arm["summary"].get(name, math.nan)) > 0 else math.nan


def panel(title: str, seeds: Sequence[Sequence[Values]], name: str, y: str, log: str = "") -> Panel:
    """A measurement along the training: means over seeds with 95 % intervals at each step; geometric ones where `log` has "y"."""
    average = geometric_interval if "y" in log else mean_interval
    lines = [_line(label, [cells[0][label] for cells in seeds], name, average) for label in seeds[0][0]]
    return Panel(title, "step", y, [line for line in lines if line.x], log)


def _line(label: str, arms: Sequence[Values], name: str, average: Callable[[Sequence[float]], Interval]) -> Line:
    """Over the steps that all seeds have."""
    known = [dict(zip(arm["steps"], arm["series"].get(name, []), strict=False)) for arm in arms]
    steps = [step for step in arms[0]["steps"] if all(_is_number(values.get(step)) for values in known)]
    found = [average([values[step] for values in known]) for step in steps]
    mean, low, high = ([_end(one, getattr(one, name)) for one in found] for name in ("mean", "low", "high"))
    is_band = len(arms) > 1  # with one seed there is no interval
    return Line(label, steps, mean, low if is_band else (), high if is_band else ())


def _end(interval: Interval, value: float | None) -> float:
    """A gap where it is not of all seeds: a logarithmic axis has no place for what is not positive."""
    return math.nan if value is None or interval.excluded else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _told(run: Run) -> Values:
    """The final numbers of a run, and its measurements along the way."""
    probes = [record for record in run.metrics() if record["kind"] == "probe"]
    names = [name for name in KEPT if any(name in probe for probe in probes)]
    return {
        "summary": run.summary,
        "steps": [probe["step"] for probe in probes],
        "series": {name: [probe.get(name) for probe in probes] for name in names},
    }


def _settings(preset: Values, cell: Values, seed: int) -> dict[str, Values]:
    return {label: preset["shared"] | cell | own | {"seed": seed} for label, own in preset["arms"].items()}
