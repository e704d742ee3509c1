"""The weights that a run had after so many steps, as something to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatwise.measurements.plan import Plan
from flatwise.measurements.subject import Subject
from flatwise.objective import Objective
from flatwise.runs import Run, RunError
from flatwise.tasks import Task
from flatwise.tasks.sampling import subset
from flatwise.training import TrainConfig, checkpoints
from flatwise.training.config import nearest
from flatwise.training.loop import load_task
from flatwise.training.setup import build_loss, build_network

WORDS = ("all", "first", "last")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a run after so many steps.

    Attributes:
        run: its folder.
        step: how many.
        file: the checkpoint in the run folder; None for initial weights of which none is kept: the seed gives them again.
        data_root: where downloaded data lies, in place of where the run says.
    """

    run: str
    step: int
    file: str | None
    data_root: str | None = None

    @property
    def label(self) -> str:
        """The run and the step."""
        return f"{self.run}, step {self.step:,}"

    def build(self, plan: Plan) -> Subject:
        """The objective at these weights, on the samples that the plan wants.

        Raises:
            RunError: the run or its checkpoint cannot be read.
            ValueError: more samples are wanted than there are.
        """
        plan, config = plan.on_data(), self._config()
        task = _task(config)
        model = self._model(config, task)
        inputs, targets, data = _chosen(task, plan, config)
        dtype = torch.float64 if plan.dtype == "float64" else torch.float32
        batches = list(zip(inputs.to(dtype).split(plan.batch_size or 1), targets.split(plan.batch_size or 1)))
        loss = build_loss(config)
        objective = Objective(
            model.to(dtype),
            lambda model, batch: loss(model(batch[0]), batch[1]),
            batches,
            mode=plan.mode or "eval",
            seed=plan.seed,
            max_memory=plan.memory(),
        )
        return Subject(objective, data | {"weights": self.file or "rebuilt from the seed"}, self.step)

    def to_dict(self) -> dict[str, Any]:
        """Itself as JSON values."""
        return {"kind": "run", **asdict(self)}

    def _config(self) -> TrainConfig:
        config = TrainConfig.from_dict(Run.open(self.run).config, self.run)
        return replace(config, data_root=self.data_root) if self.data_root else config

    def _model(self, config: TrainConfig, task: Task) -> nn.Module:
        model = build_network(config, task)
        if self.file is not None:
            _fill(model, Run.open(self.run).checkpoint_path(self.step))
        return model


def _fill(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(checkpoints.load(path)["model"])
    except RuntimeError as error:
        first = str(error).splitlines()[0].rstrip(":")
        raise RunError(f"the weights in {path} do not fit the model that the run's settings make ({first})") from error


@lru_cache(maxsize=1)
def _task(config: TrainConfig) -> Task:
    """The data of a run: read once for all its checkpoints."""
    return load_task(config)


def forget_data() -> None:
    """Let go of the data of the last run: other processes need the memory."""
    _task.cache_clear()


def _chosen(task: Task, plan: Plan, config: TrainConfig) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The samples to measure on, and what they are in JSON values."""
    train = plan.split != "test"
    inputs, targets = (task.train_inputs, task.train_targets) if train else (task.test_inputs, task.test_targets)
    there, wanted = len(targets), plan.samples
    if wanted is not None and wanted > there:
        raise ValueError(f"samples is {wanted:,}, but {config.data} has only {there:,} of the {plan.split} split here")
    drawn = {} if wanted is None else {"seed": plan.seed}
    said = {"data": config.data, "split": plan.split, "samples": wanted or there, "of": there, **drawn}
    places = subset(there, wanted, plan.seed)
    return inputs[places], targets[places], said | ({"notes": task.notes} if task.notes else {})


# --- which checkpoints ------------------------------------------------------------------------------------------------


def checkpoints_of(folder: Path, wanted: Sequence[str], data_root: str | None = None) -> list[Checkpoint]:
    """Those checkpoints of a run that are wanted, in the order of the steps.

    Args:
        folder: the run folder.
        wanted: "all", "first" (the initial weights), "last", or steps; several of them, also with commas in between.
        data_root: as in `Checkpoint`.

    Raises:
        RunError: the folder is no run, or has no such checkpoint.
        ValueError: a word that is none of these.
    """
    stored = {checkpoints.step_of(path): path.name for path in Run.open(folder).checkpoints()}
    found = {0: None} | stored
    words = [word for text in wanted for word in text.split(",") if word]
    steps = {step for word in words for step in _steps(folder, word, list(found))}
    return [Checkpoint(str(folder), step, found[step], data_root) for step in sorted(steps)]


def _steps(folder: Path, word: str, there: list[int]) -> list[int]:
    if word == "all":
        return there
    if word in ("first", "last"):
        return [min(there) if word == "first" else max(there)]
    if not word.isdecimal():
        raise ValueError(f"checkpoints are named by a step, not by {word!r}{nearest(word, WORDS)}")
    if int(word) not in there:
        kept = ", ".join(str(step) for step in sorted(there))
        raise RunError(f"the run {folder} has no checkpoint of step {int(word)}; there are {kept}")
    return [int(word)]
