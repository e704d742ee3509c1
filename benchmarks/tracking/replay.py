"""The tracker through the weights of a training that was kept: what it finds, and what that costs."""

from __future__ import annotations

import copy
import statistics
import warnings
from dataclasses import dataclass
from typing import Any

import torch

import flatwise as fw
from benchmarks.curvature.cost import clock
from benchmarks.curvature.counting import gradient, operations_of
from benchmarks.curvature.training import blank, loss_of, optimizer_of, take
from benchmarks.tracking.checks import RHO, TRAINING, Check, Run
from flatwise.curvature import EigenPairs, EigenTracker
from flatwise.methods import SAM

WITHIN = 0.02


@dataclass(frozen=True)
class Setting:
    """How the tracker is used.

    Attributes:
        engine: of the Hessian.
        options: arguments of the tracker.
    """

    engine: Any
    options: dict[str, Any]

    def tracker(self) -> EigenTracker:
        return EigenTracker(**self.options)


@dataclass
class Answer:
    """What the tracker said at one check.

    Attributes:
        step: of the training.
        value, exact: the top eigenvalue.
        products: how many it took.
        alignment: |cos| of its vector with the exact one.
        reason: why it is further off than allowed; empty if it is not.
        work: in gradients of the probe set: floating-point operations.
        step_work: of a step of the training, the same.
        seconds, gradient, step_seconds: of the update, a gradient of the probe set, a step of the training.
    """

    step: int
    value: float
    exact: float
    products: int
    alignment: float
    reason: str
    work: float = 0.0
    step_work: float = 0.0
    seconds: float = 0.0
    gradient: float = 0.0
    step_seconds: float = 0.0

    @property
    def error(self) -> float:
        return abs(self.value - self.exact) / self.exact


def replayed(run: Run, setting: Setting) -> list[Answer]:
    """Once by the clock and once counted: both say the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = Replay(run, setting).answers(timed=True)
        for answer, counted in zip(answers, Replay(run, setting).answers(timed=False), strict=True):
            answer.work, answer.step_work = counted.work, counted.step_work
    return answers


class Replay:
    """A tracker, the model that it looks at, and one that is trained beside it, for the time a step takes."""

    def __init__(self, run: Run, setting: Setting) -> None:
        self.run = run
        self.setting = setting
        self.tracker = setting.tracker()
        self.model = blank(TRAINING, run.probe)
        self.objective = fw.Objective(self.model, loss_of, [run.probe], mode="eval")

    def answers(self, *, timed: bool) -> list[Answer]:
        """One for each check, in order, with the clock or the counts."""
        return [self._answer(check, timed) for check in self.run.checks]

    def _answer(self, check: Check, timed: bool) -> Answer:
        self.model.load_state_dict(check.weights)
        measure = self._timed if timed else self._counted
        costs = measure(check)
        pairs = self.tracker.pairs
        assert pairs is not None
        vector = torch.cat([t.reshape(-1) for t in pairs.vectors[0] if t is not None])
        alignment = (vector @ check.vectors[:, 0]).abs().item()
        top, exact = pairs.values[0], check.values[0].item()
        return Answer(check.step, top, exact, pairs.products, alignment, reason(pairs, check.values.tolist()), **costs)

    def _update(self, check: Check) -> EigenPairs:
        return update(self.tracker, self.objective, self.setting, check.step)

    def _step(self, check: Check) -> Any:
        """A step of the training, on a copy."""
        model = copy.deepcopy(self.model).train()
        optimizer = optimizer_of(model, SAM(RHO), TRAINING.lr_at(check.step))
        inputs, targets = (torch.cat([t] * (TRAINING.batch // len(t))) for t in self.run.probe)  # as large as a batch
        take(optimizer, model, (inputs, targets))  # the first sets up
        return lambda: take(optimizer, model, (inputs, targets))

    def _timed(self, check: Check) -> dict[str, float]:
        step, plain = self._step(check), lambda: gradient(self.model.eval(), loss_of, self.run.probe)
        before = [(clock(plain)[0], clock(step)[0]) for _ in range(2)]
        seconds, _ = clock(lambda: self._update(check))
        around = before + [(clock(plain)[0], clock(step)[0]) for _ in range(2)]
        units, steps = zip(*around)
        return {
            "seconds": seconds,
            "gradient": statistics.median(units),
            "step_seconds": statistics.median(steps),
        }

    def _counted(self, check: Check) -> dict[str, float]:
        unit = operations_of(lambda: gradient(self.model.eval(), loss_of, self.run.probe))
        work = operations_of(lambda: self._update(check))
        return {"work": work / unit, "step_work": operations_of(self._step(check)) / unit}


def update(tracker: EigenTracker, objective: fw.Objective, setting: Setting, step: int) -> EigenPairs:
    """What a training does at every check."""
    return tracker.update(fw.curvature.hessian(objective, engine=setting.engine, step=step))


def reason(pairs: EigenPairs, exact: list[float]) -> str:
    """Why the largest value is not what it should be; empty where it is."""
    value, residual = pairs.values[0], pairs.residuals[0]
    if abs(value - exact[0]) <= WITHIN * abs(exact[0]):
        return ""
    state = f"residual {residual / abs(value):.1%}" + ("" if pairs.converged else ", not converged")
    nearest = min(range(len(exact)), key=lambda i: abs(value - exact[i]))
    if nearest and abs(value - exact[nearest]) <= WITHIN * abs(exact[nearest]):
        return f"it followed eigenvalue number {nearest + 1} ({state})"
    return f"none of the {len(exact)} largest ({state})"


def share(answers: list[Answer], steps: int) -> float:
    """The time of all updates in that of so many steps of the training."""
    return sum(a.seconds for a in answers) / (steps * statistics.median(a.step_seconds for a in answers))


def work_share(answers: list[Answer], steps: int) -> float:
    """The same in floating-point operations."""
    return sum(a.work for a in answers) / (steps * statistics.median(a.step_work for a in answers))


def summary(answers: list[Answer], steps: int) -> dict[str, Any]:
    """A training of so many steps in a few numbers."""
    failures = [f"step {a.step}: {a.value:.3g} for {a.exact:.3g}: {a.reason}" for a in answers if a.reason]
    return {
        "checks": len(answers),
        "good": len(answers) - len(failures),
        "failures": failures,
        "worst": max(a.error for a in answers),
        "time": share(answers, steps),
        "work": work_share(answers, steps),
        "later": [a.seconds / a.gradient for a in answers[1:]],
    }
