"""What a comparison will take, from a few timed steps of each of its arms: the dry run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from flatwise.experiments.comparison import Arm, Comparison
from flatwise.experiments.plan import Plan
from flatwise.tasks import Task
from flatwise.training import TrainConfig, resolved
from flatwise.training.batches import Batches
from flatwise.training.loop import load_task, surroundings
from flatwise.training.probes import Probe, objective_of
from flatwise.training.progress import duration
from flatwise.training.schedule import Schedule
from flatwise.training.setup import affordable, build_loss, build_method, build_network, build_optimizer, evaluations_in
from flatwise.training.stepping import Stepping

OF_DATA = ("data", "data_root", "subset", "label_noise", "validation", "augment", "preprocess", "channels_last")
"""The settings that the data hangs on, beside the seed."""

ROUNDS, STEPS = 3, 4
"""So many times each arm takes so many steps, by turns, so that a slow moment of the machine hits all of them."""

FREE = ("seed", "lr", "rho", "rho_schedule", "schedule", "weight_decay", "label_noise", "init")
"""Settings that a step or a measurement costs nothing more with."""

LONG = 10.0
"""Seconds: an arm whose turn takes longer, for what it looks up before its first step, has one turn only."""


@dataclass(frozen=True)
class Expected:
    """What the runs of one arm will take.

    Attributes:
        label: of the arm.
        section: the heading of the section, or what the runs are for.
        runs: how many.
        steps: of one run.
        evaluations: of one run.
        seconds: of one run, measurements among them.
    """

    label: str
    section: str
    runs: int
    steps: int
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Speed:
    """How fast an arm is: seconds for an evaluation and for a measurement, and evaluations for one of the timed steps."""

    evaluation: float
    measurement: float
    cost: float


def expected(plan: Plan, folder: Path) -> list[Expected]:
    """What each arm of a plan will take, the trials of its tuning first; nothing is written."""
    sections = plan.sections(folder)
    trials = [
        (f"Tuning. {sections[place].heading}".removesuffix(". "), tuning.comparison())
        for place, tuning in plan.trials(sections).items()
    ]
    comparisons = [*trials, *((section.heading, section) for section in sections.values())]
    configs = {arm.name: arm.config for section in sections.values() for arm in section.arms}
    speeds = _speeds(configs)
    return [found for heading, comparison in comparisons for found in _of(heading, comparison, speeds)]


def foreseen(arms: Sequence[Arm], runs: Mapping[str, int]) -> list[Expected]:
    """What the runs of some arms will take, those of one kind timed once; nothing is written.

    Args:
        arms: of any data, models and methods.
        runs: how many are left to make, by the name of the arm; arms that are not there are left out.
    """
    speeds: dict[TrainConfig, Speed] = {}
    found: list[Expected] = []
    for arm in arms:
        if arm.name in runs:
            kind = replace(arm.config, **{name: getattr(TrainConfig, name) for name in FREE})
            speeds[kind] = speeds.get(kind) or _speeds({"": arm.config})[""]
            found.append(_expect(arm.name, "", [arm], runs[arm.name], speeds[kind]))
    return found


def seconds_of(configs: Sequence[TrainConfig]) -> float:
    """How long some trainings will take, one after the other; nothing is written."""
    arms = [Arm(f"{place}", "", config) for place, config in enumerate(configs)]
    return sum(one.seconds for one in foreseen(arms, {arm.name: 1 for arm in arms}))


def print_forecast(found: Sequence[Expected], workers: int, console: Console) -> None:
    """Print a table of arms for each section, and the sum over all processes."""
    for section in dict.fromkeys(one.section for one in found):
        console.print(_table(section, [one for one in found if one.section == section]))
    runs, seconds = sum(one.runs for one in found), sum(one.runs * one.seconds for one in found)
    evaluations = sum(one.runs * one.evaluations for one in found)
    processes = max(1, min(workers, runs))
    console.print(
        f"in sum: {runs:,} runs, about {evaluations:,} evaluations and {duration(seconds)} of work, "
        f"{duration(seconds / processes)} on {processes} {'process' if processes == 1 else 'processes'}; nothing was trained",
        highlight=False,
    )


def _table(section: str, found: Sequence[Expected]) -> Table:
    grid = Table(title=section, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("Method")
    for heading in ("Runs", "Steps", "Evaluations", "Seconds a run"):
        grid.add_column(heading, justify="right")
    for one in found:
        numbers = (one.runs, f"{one.steps:,}", f"{one.evaluations:,}", f"{one.seconds:.1f}")
        grid.add_row(one.label, *map(str, numbers))
    return grid


def _of(heading: str, comparison: Comparison, speeds: Mapping[str, Speed]) -> list[Expected]:
    """The runs of a comparison by the arm of a method; trials of one arm differ by little and are counted together."""
    arms: dict[str, list[Arm]] = {}
    for arm in comparison.arms:
        if not arm.home:  # else its runs are made elsewhere
            arms.setdefault(arm.name.partition(",")[0], []).append(arm)
    return [_expect(name, heading, several, len(comparison.seeds), speeds[name]) for name, several in arms.items()]


def _expect(name: str, heading: str, arms: Sequence[Arm], seeds: int, speed: Speed) -> Expected:
    config = resolved(arms[0].config)
    schedule = Schedule(config, _batches(config).per_epoch, affordable(config))
    steps = round(schedule.total / speed.cost) if schedule.is_open else schedule.total
    evaluations = schedule.total if schedule.is_open else round(evaluations_in(config, steps) or steps * speed.cost)
    probes = sum(schedule.probes(step) for step in range(steps)) + 1
    seconds = evaluations * speed.evaluation + probes * speed.measurement * config.curvature
    return Expected(arms[0].label.partition(" with ")[0], heading, len(arms) * seeds, steps, evaluations, seconds)


def _speeds(configs: Mapping[str, TrainConfig]) -> dict[str, Speed]:
    """How fast each arm is: the median over rounds in which all arms have their turn."""
    ready = {name: resolved(replace(config, seed=0)) for name, config in configs.items()}
    measurement = _measured(next(iter(ready.values())))
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, config in list(ready.items()):
            began = time.perf_counter()
            turns[name].append(_timed(config))
            if time.perf_counter() - began > LONG:
                del ready[name]
    return {
        name: Speed(
            evaluation=median(evaluation for evaluation, _ in found),
            measurement=measurement,
            cost=median(cost for _, cost in found),
        )
        for name, found in turns.items()
    }


def _timed(config: TrainConfig) -> tuple[float, float]:
    """Seconds for an evaluation, and evaluations for a step, over a few steps after a first one."""
    task, batches = _task(config), _batches(config)
    with surroundings(config):
        model = build_network(config, task)
        schedule = Schedule(config, batches.per_epoch, affordable(config))
        whole = objective_of(model, build_loss(config), (task.train_inputs, task.train_targets))
        optimizer = build_optimizer(config, model, build_method(config, schedule.total, whole))
        stepping = Stepping(config, model, optimizer)
        stepping.take(*batches.at(0), config.lr or 0.0)
        started, evaluations = time.perf_counter(), 0.0
        for step in range(1, 1 + STEPS):
            stepping.take(*batches.at(step), config.lr or 0.0)
            evaluations += optimizer.diagnostics["evaluations"] / (config.parts or 1)
        return (time.perf_counter() - started) / evaluations, evaluations / STEPS


def _measured(config: TrainConfig) -> float:
    """Seconds for a measurement at the initial weights; the first one, which loads what it needs, does not count."""
    task = _task(config)
    with surroundings(config):
        model = build_network(config, task)
        once = partial(_measure_once, config, task, model)
        return min(once(), once())


def _measure_once(config: TrainConfig, task: Task, model: nn.Module) -> float:
    probe = Probe(config, task, model, build_loss(config), full_batch=_batches(config).is_full)
    started = time.perf_counter()
    probe.measure(config.lr or 0.0, config.rho)
    return time.perf_counter() - started


def _batches(config: TrainConfig) -> Batches:
    return Batches(_task(config), config.batch_size, config.seed)


def _task(config: TrainConfig) -> Task:
    """The data, which all arms have in common but for what is held out of it."""
    plain = TrainConfig(method="sgd", **{name: getattr(config, name) for name in OF_DATA})
    return _loaded(replace(plain, seed=0))


_loaded = lru_cache(maxsize=2)(load_task)
