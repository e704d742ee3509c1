"""A comparison: arms times seeds, made by parallel processes into one folder, which the report reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flatwise.experiments.jobs import SERVER, Job
from flatwise.experiments.progress import overall_progress
from flatwise.processes import EngineName, Pool
from flatwise.runs import Run, RunError, write_json
from flatwise.training import TrainConfig


@dataclass(frozen=True)
class Arm:
    """One method with its settings, run over all seeds.

    Attributes:
        name: of its folder, unique in the comparison.
        label: as people read it.
        config: the settings; the seed in it does not count.
        role: "method", or "control" for what only serves to judge another arm.
        norm_of: the name of an arm at whose mean displacement norm this one runs, seed by seed, as measured there.
        weight: the share of one run in the work, for the estimate of the remaining time.
        home: the folder, from that of the comparison, in which its runs lie: another comparison may have made the same ones.
        values: in a sweep, the settings that set it apart.
    """

    name: str
    label: str
    config: TrainConfig
    role: str = "method"
    norm_of: str | None = None
    weight: float = 1.0
    home: str = ""
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def folder(self, seed: int) -> Path:
        """Where its run with this seed lies, from the folder of the comparison."""
        return Path(self.home) / run_folder(self.name, seed)


@dataclass(frozen=True)
class Comparison:
    """Arms to compare over seeds.

    Attributes:
        title: of the report.
        arms: the arms, as ordered in tables.
        seeds: the seeds of every arm.
        baseline: the name of the arm that the others are compared with.
        pairs: names of two arms whose difference is of interest.
        command: the command line that makes this again.
        kind: "comparison", "edge" or "sweep".
        edge: the name of the subfolder with an edge comparison that belongs to this one.
        heading: what sets it apart from the other sections of its report.
        sections: the names of the subfolders with comparisons of the same arms under other circumstances.
        tuning: how the settings of the arms were chosen, as `flatwise.experiments.tuning` writes it down.
        swept: the names of the settings that a sweep is over.
    """

    title: str
    arms: Sequence[Arm]
    seeds: Sequence[int]
    baseline: str
    pairs: Sequence[tuple[str, str]]
    command: str
    kind: str = "comparison"
    edge: str | None = None
    heading: str = ""
    sections: Sequence[str] = ()
    tuning: Mapping[str, Any] | None = None
    swept: Sequence[str] = ()

    def jobs(self, folder: Path, mirrors: Sequence[str] = ()) -> list[Job]:
        """All runs: those that others wait for first, then long before short, so that the processes end together."""
        arms = sorted(self.arms, key=lambda arm: (arm.norm_of is not None, not self._is_awaited(arm), -arm.weight))
        return [job for arm in arms for job in self.jobs_of(folder, arm, mirrors)]

    def jobs_of(self, folder: Path, arm: Arm, mirrors: Sequence[str] = ()) -> list[Job]:
        """The runs of an arm."""
        return [self._job(folder, arm, seed, mirrors) for seed in self.seeds]

    def write(self, folder: Path) -> None:
        """Write `comparison.json`, which says what the folder holds."""
        write_json(
            folder / "comparison.json",
            {
                "title": self.title,
                "kind": self.kind,
                "command": self.command,
                "arms": [self._entry(arm) for arm in self.arms],
                "baseline": self.baseline,
                "pairs": [list(pair) for pair in self.pairs],
                "seeds": list(self.seeds),
                "edge": self.edge,
                "heading": self.heading,
                "sections": list(self.sections),
                "tuning": self.tuning,
                "swept": list(self.swept),
            },
        )

    def _is_awaited(self, arm: Arm) -> bool:
        return any(other.norm_of == arm.name for other in self.arms)

    def _named(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def _job(self, folder: Path, arm: Arm, seed: int, mirrors: Sequence[str]) -> Job:
        model = folder / self._named(arm.norm_of).folder(seed) if arm.norm_of else None
        return Job(
            name=f"{arm.label}, seed {seed}",
            folder=plain(folder / arm.folder(seed)),
            config=partial(_settings, arm, seed, model),
            after=[plain(model)] if model else [],
            weight=arm.weight,
            mirrors=mirrors,
        )

    def _entry(self, arm: Arm) -> dict[str, Any]:
        config = {name: value for name, value in arm.config.to_dict().items() if name != "seed"}
        if arm.norm_of:
            config["rho"] = f"mean displacement norm of {arm.norm_of}, per seed"
        runs = [arm.folder(seed).as_posix() for seed in self.seeds]
        entry = {"name": arm.name, "label": arm.label, "role": arm.role, "config": config, "runs": runs}
        return entry | ({"values": dict(arm.values)} if arm.values else {})


def run_folder(arm: str, seed: int) -> str:
    """Where a run lies in the folder of its comparison, without the colon of `module:Class`, which not every disk takes."""
    return f"runs/{arm.replace(':', '.')}/seed-{seed}"


def plain(path: Path) -> Path:
    """The path without `..`, so that two ways to one folder are the same."""
    return Path(os.path.normpath(path))


def carry_out(
    comparisons: dict[Path, Comparison],
    workers: int | None = None,
    mirrors: Sequence[str] = (),
    engine: EngineName = "local",
) -> dict[str, str]:
    """Make the runs of some comparisons together, on parallel processes; what is finished already is kept.

    Args:
        comparisons: each with its folder.
        workers: how many processes; by default as many as there are cores, of this machine or of the cluster.
        mirrors: "tensorboard" and "wandb", which every run is shown in as in `flatwise.training.train`.
        engine: where the processes run: "local" on this machine, "ray" on a Ray cluster.

    Returns:
        What failed: name of the run and reason. The other runs are made all the same.

    Raises:
        RunError: a folder holds a run with other settings; nothing is changed then.
        OSError: a node of the cluster does not see the folder.
        KeyboardInterrupt: after Ctrl-C; what was reached is kept, and the same call continues from there.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"the number of processes must be at least 1, not {workers}")
    found = [job for folder, comparison in comparisons.items() for job in comparison.jobs(folder, mirrors)]
    jobs = list({job.folder: job for job in found}.values())
    for job in jobs:
        if not job.after:
            job.done()  # complains about foreign runs before anything starts
    for folder, comparison in comparisons.items():
        folder.mkdir(parents=True, exist_ok=True)
        comparison.write(folder)
    with overall_progress(len(jobs)) as progress:
        return Pool(jobs, SERVER, workers, min(comparisons) / "log.txt", progress, engine).run()


def _settings(arm: Arm, seed: int, model: Path | None) -> TrainConfig:
    """The settings of one run; at equal norm they depend on what another run measured."""
    config = replace(arm.config, seed=seed)
    if model is None:
        return config
    measured = Run.open(model)
    norm = measured.summary.get("mean_displacement_norm")
    if not norm:
        raise RunError(f"the displacement norm of {model} is not known, since that run has not finished")
    # Where rho changes, the control's changes likewise: it is the means over the steps that are equal.
    mean_rho = measured.summary.get("mean_rho")
    return replace(config, rho=float(norm) * (measured.config["rho"] / mean_rho if mean_rho else 1.0))
