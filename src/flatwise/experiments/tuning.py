"""Hyper-parameters chosen on a validation split: the same small grid for every method, around its own defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from flatwise.experiments.comparison import Arm, Comparison
from flatwise.runs import Run, RunError
from flatwise.training import TrainConfig, hyper
from flatwise.training.config import SHORTCUTS
from flatwise.training.hyper import Value
from flatwise.training.setup import method_settings, values_of

FOLDER = "tuning"
FIRST_SEED = 1000
"""The seeds of tuning runs begin here, so that none of them is judged.

Data whose split is drawn by the seed (digits, a folder without splits) has another split there: test samples of a judged run
may have been trained on, or validated on, in tuning runs. It is the same for all methods that are tuned.
"""

SHARE = 0.1
"""Of the training samples that are held out, where the settings do not say."""


@dataclass(frozen=True)
class Grid:
    """Values to try for a hyper-parameter, or multiples of the value it has.

    Attributes:
        name: of the hyper-parameter.
        values: to try; factors if `relative`.
        relative: whether they are factors.
        method: whose it is; None: of all methods that have it.
    """

    name: str
    values: tuple[Value, ...]
    relative: bool
    method: str | None = None

    @classmethod
    def read(cls, word: str) -> Grid:
        """From `rho=0.05,0.1` or `rho=x0.5,x1,x2`, or with the name of a method in front, as in `tsam.tilt=1,5`.

        Raises:
            ValueError: it is neither.
        """
        place, _, text = word.partition("=")
        texts = text.split(",")
        factors = [one.startswith("x") for one in texts]
        relative = all(factors)
        entries = [hyper.read(f"{place}={one.removeprefix('x') if relative else one}") for one in texts if one]
        values = tuple(dict.fromkeys(entry.value for entry in entries))
        if not values or (any(factors) and not (relative and all(_is_number(value) for value in values))):
            raise ValueError(f"tune takes words such as rho=0.05,0.1,0.2 or rho=x0.5,x1,x2, not {word!r}")
        return cls(entries[0].name, values, relative, entries[0].method)

    def around(self, value: Value) -> list[Value]:
        """The values to try where the hyper-parameter has this value."""
        if not self.relative:
            return list(self.values)
        if not _is_number(value) or not value:
            raise ValueError(f"tune: {self.name} is {value}, which has no multiples; give the values themselves")
        return list(dict.fromkeys(_times(value, factor) for factor in self.values))


@dataclass(frozen=True)
class Candidate:
    """An arm with values that are tried for it."""

    arm: Arm
    values: Mapping[str, Value]

    @property
    def setting(self) -> str:
        """The values in words."""
        return " ".join(hyper.write(self.values))

    def trial(self, share: float) -> Arm:
        """The arm that tries them: trained on the rest of the training data, without looking at the Hessian."""
        config = replace(with_values(self.arm.config, self.values), validation=share, curvature=False, probe_every=0)
        name = f"{self.arm.name},{','.join(hyper.write(self.values))}"
        return Arm(name, f"{self.arm.label} with {self.setting}", config, weight=self.arm.weight)


@dataclass(frozen=True)
class Tuning:
    """The trials for the arms of one comparison.

    Attributes:
        candidates: those of all arms.
        trials: the arms that try them.
        seeds: of the trials.
        command: the command line that makes them again.
    """

    candidates: Sequence[Candidate]
    trials: Sequence[Arm]
    seeds: Sequence[int]
    command: str

    def comparison(self) -> Comparison:
        """The trials, as a comparison of their own."""
        first = self.trials[0].name
        return Comparison("Hyper-parameters on a validation split", self.trials, self.seeds, first, (), self.command)

    def chosen(self, arms: Sequence[Arm], folder: Path) -> list[Arm]:
        """The arms with the values that did best in the trials, which lie in `folder`.

        Raises:
            RunError: no trial of an arm has finished.
        """
        best = {name: self._best(name, folder).candidate for name in self._names()}
        return [
            replace(arm, config=with_values(arm.config, best[arm.name].values)) if arm.name in best else arm
            for arm in arms
        ]

    def entry(self, folder: Path) -> dict[str, Any]:
        """What was tried, what came out and what was chosen, as the report shows it."""
        share = self.trials[0].config.validation
        scores = {name: self._scores(name, folder) for name in self._names()}
        arms = [_written(name, found, self._best(name, folder)) for name, found in scores.items()]
        return {"folder": folder.name, "seeds": list(self.seeds), "validation": share, "arms": arms}

    def _names(self) -> list[str]:
        return list(dict.fromkeys(candidate.arm.name for candidate in self.candidates))

    def _scores(self, name: str, folder: Path) -> list[Score]:
        pairs = zip(self.candidates, self.trials, strict=True)
        return [
            Score.read(c, [folder / trial.folder(s) for s in self.seeds]) for c, trial in pairs if c.arm.name == name
        ]

    def _best(self, name: str, folder: Path) -> Score:
        """The highest mean accuracy on the validation split; between equal ones the lowest mean loss."""
        whole = [score for score in self._scores(name, folder) if score.complete]
        if not whole:
            raise RunError(
                f"no setting of {name} has finished all of its tuning runs in {folder}, so none can be chosen"
            )
        return max(whole, key=lambda score: (_mean(score.accuracies), -_mean(score.losses)))


@dataclass(frozen=True)
class Score:
    """What a candidate reached on the validation split, by seed; NaN where the run did not finish."""

    candidate: Candidate
    accuracies: Sequence[float]
    losses: Sequence[float]

    @classmethod
    def read(cls, candidate: Candidate, runs: Sequence[Path]) -> Score:
        """From run folders."""
        ends = [_summary(run) for run in runs]
        accuracies, losses = (
            [end.get(f"validation_{what}", math.nan) for end in ends] for what in ("accuracy", "loss")
        )
        return cls(candidate, accuracies, losses)

    @property
    def complete(self) -> bool:
        """Whether every seed has arrived."""
        return all(math.isfinite(value) for value in self.accuracies)


def tuning_of(arms: Sequence[Arm], words: Sequence[str], seeds: int, share: float, command: str) -> Tuning:
    """What to try for the arms of a comparison. Arms that have none of the hyper-parameters, and controls, are left as they are.

    Args:
        arms: of the comparison.
        words: the grids, as `Grid.read` takes them; with several, all combinations are tried.
        seeds: how many, from 1000 on.
        share: of the training samples that is held out; 0 is 0.1.
        command: the command line that makes this again.

    Raises:
        ValueError: a grid is none, reaches no arm, or has values that the method refuses.
    """
    grids = [Grid.read(word) for word in words]
    tuned = [arm for arm in arms if arm.role == "method"]
    for grid in grids:
        if not any(_applies(grid, arm) for arm in tuned):
            raise ValueError(
                f"tune: {grid.name} has no effect with {', '.join(arm.name for arm in tuned)}; leave it out"
            )
    candidates = [candidate for arm in tuned for candidate in _candidates(arm, grids)]
    trials = [candidate.trial(share or SHARE) for candidate in candidates]
    return Tuning(candidates, trials, range(FIRST_SEED, FIRST_SEED + seeds), command)


def with_values(config: TrainConfig, values: Mapping[str, Value]) -> TrainConfig:
    """The settings with these hyper-parameters of their method in place of what they say."""
    short: dict[str, Any] = {name: value for name, value in values.items() if name in SHORTCUTS}
    others = hyper.for_method(config.hyper, config.method) | dict(values)
    return replace(config, **short, hyper=hyper.write({n: v for n, v in others.items() if n not in short}))


def _candidates(arm: Arm, grids: Sequence[Grid]) -> list[Candidate]:
    own = [grid for grid in grids if _applies(grid, arm)]
    if not own:
        return []
    known = values_of(arm.config)
    choices = [[(grid.name, value) for value in grid.around(known[grid.name])] for grid in own]
    return [Candidate(arm, dict(combination)) for combination in product(*choices)]


def _applies(grid: Grid, arm: Arm) -> bool:
    return grid.name in method_settings(arm.config.method) and grid.method in (None, arm.name)


def _times(value: Value, factor: Value) -> Value:
    """A multiple, rounded to six digits so that it reads well; whole where the value is."""
    found = float(f"{float(value or 0) * float(factor or 0):.6g}")
    return max(1, round(found)) if isinstance(value, int) else found


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _summary(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        return {}
    run = Run.open(path)
    return run.summary if run.status == "finished" else {}


def _written(name: str, scores: Sequence[Score], best: Score) -> dict[str, Any]:
    """NaN is no JSON, so what is missing is null."""
    grid = [
        {
            "setting": score.candidate.setting,
            "values": json.loads(json.dumps(dict(score.candidate.values))),
            "accuracies": [value if math.isfinite(value) else None for value in score.accuracies],
            "losses": [value if math.isfinite(value) else None for value in score.losses],
        }
        for score in scores
    ]
    return {"name": name, "label": best.candidate.arm.label, "grid": grid, "chosen": best.candidate.setting}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
