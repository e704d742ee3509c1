"""Where the numbers come from: settings, machine, command, and how each was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flatwise.report.quantities import compact
from flatwise.report.study import Arm, Record, Study, number, settings
from flatwise.statistics import median

ABSENT = "–"


@dataclass(frozen=True)
class Settings:
    """Settings of a study: `shared` by all runs, and for those that differ one row of values per arm."""

    shared: Sequence[tuple[str, str]]
    differing: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Provenance:
    """How one study was made; what an earlier study of the page has said already is left out."""

    title: str
    settings: Settings
    environment: Sequence[tuple[str, str]]
    command: str
    measurements: Sequence[tuple[str, str]]


def provenance(study: Study, earlier: Study | None = None) -> Provenance:
    """The provenance of a study, without the command, machine and measurements that `earlier` has in common with it."""
    machine, run, means = _environment(study), _command(study), _measurements(study)
    if earlier:
        machine = [] if machine[:-1] == _environment(earlier)[:-1] else machine
        run = "" if run == _command(earlier) else run
        means = [entry for entry in means if entry not in _measurements(earlier)]
    return Provenance(study.heading or study.title, _settings(study), machine, run, means)


def _settings(study: Study) -> Settings:
    """What all arms share once, then what differs per arm."""
    configs = [settings(trial) for trial in study.trials if trial.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    values = {key: shown(config.get(key) for config in configs) for key in keys}
    shared = [(key, value[0]) for key, value in values.items() if len(value) == 1 and value[0] != ABSENT]
    differing = [key for key, value in values.items() if len(value) > 1]
    return Settings(shared, differing, [(arm.label, [_value(arm, key) for key in differing]) for arm in study.arms])


def _value(arm: Arm, key: str) -> str:
    """The value of a setting in an arm; where it depends on the seed, in the words of the plan if it has some."""
    values = shown(trial.config.get(key) for trial in arm.trials if trial.config)
    planned = arm.plan.get(key)
    return planned if len(values) > 1 and isinstance(planned, str) else ", ".join(values)


def _environment(study: Study) -> list[tuple[str, str]]:
    """Versions and hardware; where runs differ, all values."""
    records = [flat(trial.environment) for trial in study.trials if trial.environment]
    keys = dict.fromkeys(key for record in records for key in record if key not in ("command", "started"))
    found = [(key, " | ".join(shown(record.get(key) for record in records))) for key in keys]
    found = [(key, text) for key, text in found if text != ABSENT]
    started = sorted(record["started"] for record in records if "started" in record)
    return [*found, *([("started", started[0])] if started else [])]


def _command(study: Study) -> str:
    """The command that runs the study again; empty when none was recorded."""
    recorded = (str(trial.environment.get("command") or "") for trial in study.trials)
    return study.command or next(filter(None, recorded), "")


def _measurements(study: Study) -> list[tuple[str, str]]:
    """How each number was measured, by its name."""
    probes = [probe for trial in study.trials for probe in trial.probes]
    where = " | ".join(shown(probe["on"] for probe in probes if "on" in probe)) or "not recorded"
    entries = [("Measured on", where), *_residuals(probes)]
    entries += [(name, text) for key, name, text in MEANINGS if any(key in probe for probe in probes)]
    return [*entries, ("Intervals", INTERVALS), ("What this does not show", CAVEAT)]


MEANINGS = (
    (
        "alignment_displacement",
        "Alignment of the displacement",
        "|cos| between the displacement of the step taken at the probe and the top eigenvector v₁; "
        "in the table its mean over the probes of a run.",
    ),
    (
        "alignment_tracked",
        "Alignment of the tracked vector",
        "|cos| between the eigenvector that the method keeps for itself and v₁; in the table its mean over the probes of a run.",
    ),
    (
        "trace",
        "Trace of the Hessian",
        "At the end of a run, on the same samples: Hutchinson's estimate from a few random vectors, drawn by the run's seed. The "
        "interval over seeds holds what the estimate is off by.",
    ),
    (
        "edge",
        "Edge",
        "The curvature above which a step on the local quadratic model grows instead of shrinking, from learning rate, rho "
        "and the gradient norm on the same full batch; drawn only where it is derived.",
    ),
)
INTERVALS = (
    "Two-sided 95 % Student t intervals over seeds. Differences are paired by seed, and each interval stands for itself. p is "
    "that of the paired t-test, corrected by Holm's method for all differences in one quantity: judging by p at most 0.05, the "
    "chance of any false finding among them is at most 5 %."
)
CAVEAT = (
    "A small top eigenvalue describes the place that training has reached. It is no proof of generalization, "
    "and numbers side by side do not say why one method is more accurate than another."
)


def _residuals(probes: Sequence[Record]) -> list[tuple[str, str]]:
    found = [number(probe, "residual") / abs(number(probe, "top_eigenvalue") or math.nan) for probe in probes]
    finite = [residual for residual in found if math.isfinite(residual)]
    if not finite:
        return []
    text = (
        "The largest algebraic eigenvalue of the Hessian of the loss on these samples, by Lanczos iteration; residual "
        f"relative to it: median {compact(median(finite))}, largest {compact(max(finite))} over {len(finite):,} probes."
    )
    return [("Top eigenvalue", text)]


def shown(values: Iterable[Any]) -> list[str]:
    """The distinct values as text, in the order in which they come."""
    return list(dict.fromkeys(_text(value) for value in values))


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in cast("list[Any]", value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a record and of the records inside it."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        found |= flat(cast("dict[str, Any]", value)) if isinstance(value, dict) else {key: value}
    return found
