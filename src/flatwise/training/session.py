"""What a run carries from step to step, and its way into a checkpoint and back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flatwise import vectors as V
from flatwise.optim import SharpnessAware
from flatwise.runs import Run, RunWarning, read_mapping, write_json
from flatwise.runs.run import Ending
from flatwise.training import checkpoints
from flatwise.training.distributed import World
from flatwise.training.layouts import moved, spread_state, spread_weights, whole
from flatwise.training.mirrors import Mirrors
from flatwise.training.probes import SPLITS, Measurement, Probe
from flatwise.training.tally import Tally
from flatwise.vectors import Vector

AVERAGED = ("alignment_gradient", "alignment_displacement", "alignment_tracked")
"""Measurements whose means over a run are final numbers."""

FINAL = {
    **{f"{split}_{what}": f"{split}_{what}" for split in SPLITS for what in ("loss", "accuracy")},
    **{name: name for name in ("top_eigenvalue", "trace", "trace_error")},
    "residual": "top_eigenvalue_residual",
}
"""Measurements at the end of a run that are final numbers, and their names there."""

CIRCUMSTANCES = "probes.json"
"""The file of a run that says how its first probe measured; what differs at a later one is among its metrics as `changed`."""

HOPELESS = 10
"""So many skipped steps in a row end a run: the weights no longer change, and nothing else will come."""


@dataclass
class Session:
    """A run in progress: everything that changes from step to step is reached from here.

    Where several processes share it, all of them call the same methods. The first one measures and writes.

    Attributes:
        model: that is trained; its parameters may be shards.
        measured: where those are shards, the copy of the model that the probe looks at, on the first process.
    """

    run: Run
    model: nn.Module
    optimizer: SharpnessAware
    probe: Probe
    tally: Tally
    mirrors: Mirrors
    keeps: Callable[[int], bool] = lambda _step: False
    world: World = field(default_factory=World)
    measured: nn.Module | None = None

    def save(self, step: int) -> None:
        """Write the checkpoint from which `resume` continues after so many steps."""
        first = self.world.is_first
        content = {
            "step": step,
            "model": whole(self.model.state_dict(), keep=first),
            "optimizer": whole(self.optimizer.state_dict(), keep=first),
            "tracker": self.probe.tracker.state_dict(),
            "tally": self.tally.state_dict(),
            "random": self.world.gathered(_random_states(self.world.device)),
        }
        if first:
            checkpoints.save(self.run, step, content, self.keeps)

    def resume(self) -> int:
        """Continue from the newest readable checkpoint, or from the start; the number of steps already taken.

        Metrics that were written after the checkpoint are dropped: they will be written again.

        Warns:
            RunWarning: on those before, where there are none.
        """
        content = self.world.told(lambda: checkpoints.newest(self.run))
        if content is not None:
            self._load(content)
        step = 0 if content is None else int(content["step"])
        if self.world.is_first:
            self.run.rewind(step - 1)
            if step and not self.run.metrics():  # every run is measured before its first step
                warnings.warn(
                    f"the metrics of {self.run.path} before step {step} are missing", RunWarning, stacklevel=2
                )
            self.mirrors.follow(self.run, step)
        return step

    def _load(self, content: dict[str, Any]) -> None:
        parameters = list(self.model.parameters())
        self.model.load_state_dict(spread_weights(content["model"], self.model))
        self.optimizer.load_state_dict(spread_state(content["optimizer"], parameters))
        self.probe.tracker.load_state_dict(moved(content["tracker"], self.world.device))
        self.tally.load_state_dict(content["tally"])
        if self.world.rank < len(content["random"]):
            _go_on_drawing(content["random"][self.world.rank], self.world.device)

    def measure(self, lr: float, rho: float | None, step: int | None = None, *, last: bool = False) -> Measurement:
        """What the probe measures at the weights as they are; on processes but the first nothing."""
        if self.world.parallel == "fsdp2":
            weights = whole(self.model.state_dict(), keep=self.world.is_first)
            if self.measured is not None:
                self.measured.load_state_dict(weights)
        return self.probe.measure(lr, rho, step, last=last) if self.world.is_first else Measurement({})

    def weights(self) -> Vector:
        """The trained parameters, live."""
        return [p.detach() for p in self.model.parameters() if p.requires_grad]

    def displacement(self, before: Vector) -> Vector:
        """How far the weights are from where they were; whole tensors."""
        return whole(V.add(self.weights(), before, -1))

    def tracked_eigenvector(self) -> Vector | None:
        """The method's own estimate of the top eigenvector; None for methods without one."""
        entries = self.optimizer.state_dict()["state"]
        trained = [p.requires_grad for p in self.model.parameters()]
        found: Vector = [entries.get(i, {}).get("flatwise.eigenvector") for i, on in enumerate(trained) if on]
        return whole(found) if V.present(found) else None

    # --- what is written down -----------------------------------------------------------------------------------------

    def taken(self, step: int) -> int:
        """How many of the steps before `step` were taken and not skipped."""
        return step - int(self.tally.total("skipped"))

    @property
    def spent(self) -> float:
        """The gradient evaluations of all steps so far, each of a whole batch."""
        return self.tally.total("evaluations")

    def count(self, seconds: float, rho: float | None, parts: int = 1) -> None:
        """Take the step just made into the counts and means; its rho only where that changes.

        An evaluation on one of `parts` of the batch counts as that share of one.
        """
        numbers = self.optimizer.diagnostics
        was_skipped = numbers["skipped"] > self.tally.total("skipped")
        self.tally.count("skipped", was_skipped)
        self.tally.count("skipped_in_a_row", 1 if was_skipped else -self.tally.total("skipped_in_a_row"))
        self.tally.count("seconds", seconds)
        self.tally.count("evaluations", numbers["evaluations"] / parts)
        if math.isfinite(numbers["displacement_norm"]):
            changing = {} if rho is None or self.optimizer.rho_schedule is None else {"rho": rho}
            self.tally.note({"displacement_norm": numbers["displacement_norm"], **changing})

    def record(self, step: int, epoch: float, lr: float, rho: float | None, measurement: Measurement) -> None:
        """Write the step just made, and what was measured before it, into the metrics."""
        numbers = self.optimizer.diagnostics
        now = {"step": step, "epoch": epoch}
        self.tally.note({name: measurement.values[name] for name in AVERAGED if name in measurement.values})
        rates = {"lr": lr} if rho is None else {"lr": lr, "rho": rho}
        self._append({"kind": "train", **now, "loss": numbers["loss"], **rates, **self._counts()})
        displaced = {"displacement_norm": numbers["displacement_norm"]}
        self._append({"kind": "probe", **now, **measurement.values, **self._circumstances(measurement), **displaced})

    def finished(self, step: int, epoch: float, measurement: Measurement) -> Run:
        """End the run with its final numbers."""
        values = measurement.values
        self._append({"kind": "probe", "step": step, "epoch": epoch, **values, **self._circumstances(measurement)})
        final = {FINAL[name]: value for name, value in values.items() if name in FINAL}
        return self._finish("finished", {"steps": step, **final})

    def failure(self, step: int) -> str | None:
        """Why the run cannot go on after this step; None when it can."""
        loss = self.optimizer.diagnostics["loss"]
        if not math.isfinite(loss):
            return f"the training loss became {loss} at step {step}"
        if self.tally.total("skipped_in_a_row") >= HOPELESS:
            return f"{HOPELESS} steps in a row could not be taken until step {step}: their gradients were not finite"
        return None

    def diverged(self, step: int, reason: str) -> Run:
        """End the run where it cannot go on."""
        return self._finish("diverged", {"steps": step, "reason": reason})

    def _finish(self, status: Ending, summary: dict[str, Any]) -> Run:
        self.world.told(lambda: self.run.finish(status, {**summary, **self.tally.means(), **self._counts()}))
        return self.run

    def _circumstances(self, measurement: Measurement) -> dict[str, Any]:
        """Write down once how the probes measure; afterwards what has changed since, for the metrics."""
        now = measurement.circumstances
        path = self.run.path / CIRCUMSTANCES
        if now is None:
            return {}
        if not path.exists():
            write_json(path, now)
        before = read_mapping(path)
        changed = {name: value for name, value in now.items() if name != "step" and before.get(name) != value}
        return {"changed": changed} if changed else {}

    def _append(self, record: dict[str, Any]) -> None:
        if self.world.is_first:
            self.run.append(record)
            self.mirrors.record(record)

    def _counts(self) -> dict[str, Any]:
        return {
            "seconds": self.tally.total("seconds"),
            "evaluations": round(self.spent),
            "skipped": int(self.tally.total("skipped")),
        }


def _random_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that training draws from: on the CPU, and on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _go_on_drawing(states: list[Tensor], device: torch.device) -> None:
    """Continue the generators; the device's own only where it was saved on such a one."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
