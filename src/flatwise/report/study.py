"""What a report is about: arms of runs over seeds, read from run folders once."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flatwise.runs import Run, RunError, RunWarning, read_mapping

Record: TypeAlias = Mapping[str, Any]

METHOD_LABELS = {
    "gd": "GD",
    "sgd": "SGD",
    "sam": "SAM",
    "eigen-sam": "Eigen-SAM",
    "sam-equal-norm": "SAM at equal norm",
    "reverse-sam": "Reverse-SAM",
    "gradient-norm": "Gradient norm",
}
MANY = 8
"""More differences than that are a crowd."""

# Where a run was written and whether it was resumed are no settings of the experiment.
BOOKKEEPING = frozenset({"seed", "out", "path", "name", "resume", "command"})


@dataclass(frozen=True)
class Trial:
    """One run of an arm: one seed. `status` is "finished", "diverged", "unfinished", "missing" or "unreadable"."""

    seed: int | None
    status: str
    config: Record = field(default_factory=dict[str, Any])
    environment: Record = field(default_factory=dict[str, Any])
    probes: Sequence[Record] = ()
    summary: Record = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """How the run is called in a sentence."""
        return "the run" if self.seed is None else f"seed {self.seed}"

    def final(self, key: str) -> float:
        """A number of the summary; NaN when it was not measured or the run did not finish."""
        return number(self.summary, key) if self.status == "finished" else math.nan


@dataclass(frozen=True)
class Arm:
    """A method with its hyper-parameters, run over seeds.

    `role` is "method" or "control"; `plan` holds the settings as planned, which may say in words how one depends on the seed;
    `values` are those that set it apart in a sweep.
    """

    name: str
    label: str
    role: str
    trials: Sequence[Trial]
    plan: Record = field(default_factory=dict[str, Any])
    values: Record = field(default_factory=dict[str, Any])

    @property
    def finished(self) -> list[Trial]:
        """The runs that arrived: only they count in a mean."""
        return [trial for trial in self.trials if trial.status == "finished"]

    def by_seed(self, key: str) -> dict[int | None, float]:
        """A final number per seed; NaN where the run did not finish."""
        return {trial.seed: trial.final(key) for trial in self.trials}


@dataclass(frozen=True)
class Study:
    """Arms to compare.

    Attributes:
        title: of the page.
        kind: "comparison" or "edge".
        command: that makes it again.
        arms: in the order of tables.
        pairs: names of arms whose difference is of interest.
        edge: a study of the edge of stability that belongs to it.
        warnings: about files that could not be read whole.
        heading: what sets it apart from the other sections of the page; may be empty.
        sections: studies of the same arms under other circumstances.
        tuning: how the arms' hyper-parameters were chosen, as `comparison.json` says it.
    """

    title: str
    kind: str
    command: str
    arms: Sequence[Arm]
    pairs: Sequence[tuple[str, str]] = ()
    edge: Study | None = None
    warnings: Sequence[str] = ()
    heading: str = ""
    sections: Sequence[Study] = ()
    tuning: Record | None = None

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def seeds(self) -> int:
        """The largest number of runs of an arm."""
        return max(len(arm.trials) for arm in self.arms)

    @property
    def trials(self) -> list[Trial]:
        """All runs of all arms."""
        return [trial for arm in self.arms for trial in arm.trials]

    @property
    def parts(self) -> list[Study]:
        """The study itself and its sections."""
        return [self, *self.sections]

    @property
    def is_crowded(self) -> bool:
        """Whether there are too many differences to say each of them in a sentence."""
        return len(self.pairs) > MANY


def number(record: Record, key: str) -> float:
    """A float of the record; NaN when it is absent or no number."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


# --- reading ----------------------------------------------------------------------------------------------------------


def read(folder: str | Path) -> Study:
    """The study in a comparison folder, an edge folder, or a single run folder.

    Raises:
        RunError: the folder is none of these.
    """
    folder = Path(folder)
    if (folder / "comparison.json").is_file():
        return _read_comparison(folder)
    if (folder / "config.json").is_file():
        return read_runs([folder])
    raise RunError(f"nothing to report in {folder}: it holds neither comparison.json nor a run's config.json")


def read_runs(paths: Sequence[str | Path]) -> Study:
    """The study of single run folders: runs that differ only in their seed are one arm.

    Raises:
        RunError: no path is given, or one of them is no run.
    """
    if not paths:
        raise RunError("nothing to report: give at least one run folder")
    with _reading() as messages:
        trials = [_open_trial(Path(path), _seed_of(Path(path))) for path in paths]
    arms = _group(trials)
    pairs = [(arm.name, arms[0].name) for arm in arms[1:]]
    commands = dict.fromkeys(str(trial.environment.get("command", "")) for trial in trials)
    kind = "edge" if all(any("edge" in probe for probe in trial.probes) for trial in trials) else "comparison"
    return Study(_title(arms), kind, "\n".join(filter(None, commands)), arms, pairs, None, messages)


def _read_comparison(folder: Path) -> Study:
    plan = read_mapping(folder / "comparison.json")
    with _reading() as messages:
        arms = [_read_arm(folder, entry, plan.get("seeds") or []) for entry in plan.get("arms") or []]
    if not arms:
        raise RunError(f"nothing to report in {folder}: its comparison.json names no arms")
    edge = folder / str(plan["edge"]) if plan.get("edge") else None
    return Study(
        title=str(plan.get("title") or folder.resolve().name),
        kind=str(plan.get("kind") or "comparison"),
        command=str(plan.get("command") or ""),
        arms=arms,
        pairs=_pairs(plan, [arm.name for arm in arms]),
        edge=_read_comparison(edge) if edge and (edge / "comparison.json").is_file() else None,
        warnings=messages,
        heading=str(plan.get("heading") or ""),
        sections=[_read_comparison(folder / str(name)) for name in plan.get("sections") or []],
        tuning=plan.get("tuning"),
    )


def _pairs(plan: Record, names: Sequence[str]) -> list[tuple[str, str]]:
    baseline = plan.get("baseline")
    named = plan.get("pairs") or [(name, baseline) for name in names if name != baseline]
    return [(str(a), str(b)) for a, b in named if a in names and b in names]


def _read_arm(folder: Path, entry: Record, seeds: Sequence[int]) -> Arm:
    runs = [folder / str(path) for path in entry.get("runs") or []]
    expected = list(seeds) if len(seeds) == len(runs) else [None] * len(runs)
    trials = [_read_trial(path, seed) for path, seed in zip(runs, expected)]
    name = str(entry["name"])
    label = str(entry.get("label") or METHOD_LABELS.get(name, name))
    role = str(entry.get("role") or "method")
    return Arm(name, label, role, trials, entry.get("config") or {}, entry.get("values") or {})


def _read_trial(path: Path, seed: int | None) -> Trial:
    """The run; a missing one where the comparison has not come to it yet, or where it cannot be read."""
    seed = _seed_of(path) if seed is None else seed
    if not (path / "config.json").is_file():
        return Trial(seed, "missing")
    try:
        return _open_trial(path, seed)
    except RunError as error:
        return Trial(seed, "unreadable", summary={"reason": str(error)})


def _open_trial(path: Path, seed: int | None) -> Trial:
    run = Run.open(path)
    probes = [record for record in run.metrics() if record.get("kind") == "probe"]
    found = run.config.get("seed")
    return Trial(
        found if isinstance(found, int) else seed, run.status, run.config, run.environment, probes, run.summary
    )


def _seed_of(path: Path) -> int | None:
    match = re.search(r"(\d+)$", path.name)
    return int(match.group(1)) if match else None


@contextmanager
def _reading() -> Generator[list[str]]:
    """Collect what the run folders warn of, so that the report can say it; other warnings go their way."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunWarning)
        yield messages
    for warning in caught:
        if issubclass(warning.category, RunWarning):
            messages.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


# --- single runs ------------------------------------------------------------------------------------------------------


def _group(trials: Sequence[Trial]) -> list[Arm]:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(json.dumps(settings(trial), sort_keys=True, default=str), []).append(trial)
    configs = [settings(group[0]) for group in groups.values()]
    arms = enumerate(zip(configs, groups.values()))
    return [Arm(_name(config, i), _label(config, configs), "method", group) for i, (config, group) in arms]


def _name(config: Record, place: int) -> str:
    return f"{config.get('method', 'run')}-{place}"


def settings(trial: Trial) -> dict[str, Any]:
    """The run's configuration without seed and bookkeeping."""
    return {key: value for key, value in trial.config.items() if key not in BOOKKEEPING}


def _label(config: Record, configs: Sequence[Record]) -> str:
    """The method, and what sets it apart from other arms of the same method."""
    method = str(config.get("method", "run"))
    rivals = [other for other in configs if other.get("method") == config.get("method")]
    keys = [key for key in config if any(other.get(key) != config[key] for other in rivals)]
    label = METHOD_LABELS.get(method, method)
    return label + (f" ({', '.join(f'{key} {config[key]}' for key in keys)})" if keys else "")


def _title(arms: Sequence[Arm]) -> str:
    config = arms[0].trials[0].config
    where = [str(config[key]) for key in ("data", "model") if key in config]
    return ", ".join([" and ".join(arm.label for arm in arms), *where])
