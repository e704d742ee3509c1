"""What `flatwise compare` does: sections at equal steps or equal evaluations, each tuned first if that is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flatwise.experiments.arms import arm_of, arms_of, baseline_of, pairs_of
from flatwise.experiments.comparison import Arm, Comparison, carry_out
from flatwise.experiments.tuning import FOLDER, Tuning, tuning_of
from flatwise.processes import EngineName
from flatwise.training import Settings, resolved
from flatwise.training.batches import Batches
from flatwise.training.loop import load_task
from flatwise.training.setup import affordable

Equal = Literal["steps", "evaluations"]

RATE = 2
"""Evaluations for a step, between a number of steps and a budget of evaluations: what SAM takes."""

EVALUATIONS = "evaluations"
"""The subfolder of the section at equal evaluations, beside one at equal steps."""

HEADINGS = {"steps": "At equal steps, {:,} each", "evaluations": "At equal gradient evaluations, {:,} each"}
MANY = 6
"""So many arms are named in the title."""


@dataclass(frozen=True)
class Plan:
    """A comparison of methods, before it is made.

    Attributes:
        methods: names, each once.
        settings: shared by all.
        seeds: how many: 0, 1, 2 ...
        command: the command line that makes this again.
        equal: at what the methods are compared: one of the two, or both. A budget of evaluations is that of `settings`, or what
            SAM takes in the steps; the number of steps is that of `settings`, or what SAM takes for the budget.
        tune: grids of hyper-parameters, as `flatwise.experiments.tuning` reads them.
        tune_seeds: how many seeds of each trial: 1000, 1001 ...
        equal_norm: as in `arms_of`.

    Raises:
        ValueError: no method, seeds or tune_seeds below 1, or `equal` twice the same.
    """

    methods: Sequence[str]
    settings: Settings
    seeds: int
    command: str
    equal: Sequence[Equal] = ("steps",)
    tune: Sequence[str] = ()
    tune_seeds: int = 2
    equal_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("seeds", "tune_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.methods:
            raise ValueError("name at least one method to compare")
        if len(set(self.equal)) < len(self.equal) or not self.equal:
            raise ValueError("equal takes steps, evaluations, or both")
        if self.settings.evaluations and "evaluations" not in self.equal:
            raise ValueError(
                f"evaluations {self.settings.evaluations} has no effect at equal steps; add --equal evaluations"
            )

    def sections(self, folder: Path) -> dict[Path, Comparison]:
        """The comparisons by folder, as yet without tuned settings; the first is what the report begins with."""
        kinds = sorted(self.equal, reverse=True)  # at equal steps first
        places = [folder, *(folder / EVALUATIONS for _ in kinds[1:])]
        return _sharing({place: self._section(kind) for place, kind in zip(places, kinds, strict=True)})

    def trials(self, sections: Mapping[Path, Comparison]) -> dict[Path, Tuning]:
        """The trials for each section, by the section's folder; none where nothing is tuned."""
        if not self.tune:
            return {}
        share = self.settings.validation
        found = {
            place: tuning_of(section.arms, self.tune, self.tune_seeds, share, self.command)
            for place, section in sections.items()
        }
        (first, one), *_ = found.items()
        home = {place: os.path.relpath(first / FOLDER, place / FOLDER) for place in found}
        return {
            place: tuning if tuning is one else replace(tuning, trials=shared(tuning.trials, one.trials, home[place]))
            for place, tuning in found.items()
        }

    def carry_out(
        self, folder: Path, workers: int | None = None, mirrors: Sequence[str] = (), engine: EngineName = "local"
    ) -> dict[str, str]:
        """Make all runs, the trials first; returns what failed: name of the run and reason. Raises as `comparison.carry_out`."""
        sections = self.sections(folder)
        trials = self.trials(sections)
        failures: dict[str, str] = {}
        if trials:
            failures |= carry_out({place / FOLDER: t.comparison() for place, t in trials.items()}, workers, (), engine)
            sections = _sharing({place: _tuned(s, trials[place], place / FOLDER) for place, s in sections.items()})
        return failures | carry_out(sections, workers, mirrors, engine)

    def _section(self, kind: Equal) -> Comparison:
        settings = replace(self.settings, validation=0.0) if self.tune else self.settings
        as_given = kind == "steps" and len(self.equal) == 1
        settings = settings if as_given else self._budgeted(settings, kind)
        arms = [_weighed(arm) for arm in arms_of(self.methods, settings, equal_norm=self.equal_norm)]
        baseline = baseline_of(arms)
        heading = "" if as_given else HEADINGS[kind].format(settings.steps or settings.evaluations)
        pairs = pairs_of(arms, baseline)
        return Comparison(self._title(arms), arms, range(self.seeds), baseline, pairs, self.command, heading=heading)

    def _title(self, arms: Sequence[Arm]) -> str:
        who = ", ".join(arm.label for arm in arms) if len(arms) <= MANY else f"{len(self.methods)} methods"
        return f"{who} on {self.settings.data}"

    def _budgeted(self, settings: Settings, kind: Equal) -> Settings:
        steps, budget = self._steps(settings), settings.evaluations
        if kind == "steps":
            return replace(settings, epochs=None, evaluations=None, steps=steps)
        return replace(settings, epochs=None, steps=None, evaluations=budget or RATE * steps)

    def _steps(self, settings: Settings) -> int:
        """The number of steps at equal steps."""
        if settings.evaluations:
            return max(1, settings.evaluations // RATE)
        config = resolved(arm_of("sgd", settings).config)
        return config.steps or (config.epochs or 0) * Batches(load_task(config), config.batch_size, 0).per_epoch


def _tuned(section: Comparison, tuning: Tuning, trials: Path) -> Comparison:
    return replace(section, arms=tuning.chosen(section.arms, trials), tuning=tuning.entry(trials))


def _sharing(sections: Mapping[Path, Comparison]) -> dict[Path, Comparison]:
    """The sections with the runs that are the same in the first one and another made once, in the first one's folder."""
    (first, one), *others = sections.items()
    found = {place: replace(s, arms=shared(s.arms, one.arms, os.path.relpath(first, place))) for place, s in others}
    return {first: replace(one, sections=[place.name for place in found])} | found


def shared(arms: Sequence[Arm], others: Sequence[Arm], home: str) -> list[Arm]:
    """The arms, those whose runs are the same as an arm's among the others at home there."""
    known = {arm.name: arm for arm in others}
    return [replace(arm, home=home if _same_runs(arm, known.get(arm.name)) else "") for arm in arms]


def _same_runs(arm: Arm, other: Arm | None) -> bool:
    return other is not None and arm.config == other.config and arm.norm_of is None


def _weighed(arm: Arm) -> Arm:
    """The arm with its budget of evaluations as a number of steps, where that is known before, and its work as weight."""
    steps = affordable(arm.config)
    config = arm.config if steps is None else replace(arm.config, evaluations=None, steps=steps)
    work = config.evaluations or (config.steps or 1) * arm.weight
    return replace(arm, config=config, weight=float(work))
