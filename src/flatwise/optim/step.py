"""One step's dialogues, from the first request to the direction in `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatwise import vectors as V
from flatwise.methods import At, Evaluation, Method, State
from flatwise.optim import checks, messages
from flatwise.optim.passes import Pass, scale_of
from flatwise.optim.replicas import Replicas
from flatwise.optim.stage import Stage
from flatwise.vectors import Scalar, Vector


class Step:
    """Runs a method's dialogue, once or once per part, and keeps what the step and its diagnostics need.

    Args:
        method: the generator's owner.
        state: makes the state that a dialogue may change; the first dialogue's becomes the next state.
        stage: makes the surroundings of one dialogue.
        replicas: the processes that share the step.
        scaler: a `torch.amp.GradScaler`, or None.
        parts: into how many parts the user splits the batch.
        each: a dialogue per part (True), or a dialogue in which every evaluation is the mean over the parts (False).
        optimizers: as which a scaler may know the one that steps: the wrapper, its base.
    """

    def __init__(
        self,
        method: Method,
        state: Callable[[], State],
        stage: Callable[[], Stage],
        replicas: Replicas,
        scaler: Any,
        parts: int,
        each: bool,
        optimizers: Sequence[Optimizer],
    ) -> None:
        self.method = method
        self.replicas = replicas
        self.scaler = scaler
        self.rounds = [[part] for part in range(parts)] if each else [list(range(parts))]
        self.loss: Tensor = torch.zeros(())
        self.finite = False
        self.evaluations = 0
        self.interfered = False
        self.states: list[State] = []
        self._optimizers = optimizers
        self._new_state = state
        self._new_stage = stage
        self._stage: Stage | None = None
        self._counted = False
        self._checks: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._weights: list[Scalar] = []
        self._agreements: list[Tensor] = []
        self._present: Tensor | None = None
        self._displacements: list[Scalar] = []

    def run(self) -> Generator[Pass]:
        """Yield the passes; afterwards `.grad` holds the direction and `finite` says whether the step may be taken."""
        direction: Vector | None = None
        first: Stage | None = None
        try:
            for parts in self.rounds:
                found = yield from self._dialogue(parts)
                self._weigh_(found)
                direction = found if direction is None else V.add(direction, found)
                first = first or self._stage
            if direction is not None and first is not None:
                self._conclude(direction, first)
        except BaseException:  # a dialogue puts back what it changed itself, not what those before it did
            if first is not None:
                first.buffers_before.restore()
            raise

    def abort(self) -> None:
        """Put everything back; also after an interruption that hit the putting back itself."""
        if self._stage is not None:
            self._stage.close(succeeded=False)
            self._stage = None

    def diagnostics(self) -> dict[str, float]:
        """The numbers of this step; reading them waits for the device."""
        moved = [abs(float(d)) for d in self._displacements]
        numbers: dict[str, Scalar] = {
            "loss": self.loss,
            "gradient_norm": torch.stack(self._norms).mean(),
            "displacement_norm": sum(moved) / len(moved),
            "evaluations": self.evaluations,
        }
        return {name: float(value) for name, value in (numbers | self.states[0].notes).items()}

    # --- the dialogue -------------------------------------------------------------------------------------------------

    def _dialogue(self, parts: list[int]) -> Generator[Pass, None, Vector]:
        self._stage = stage = self._new_stage()
        self._counted = False
        state = self._new_state()
        self._losses.append(torch.zeros(()))
        self._norms.append(torch.zeros(()))
        self._weights.append(1.0)
        succeeded = False
        try:
            direction = yield from self._converse(stage, state, parts)
            succeeded = True
        finally:
            stage.close(succeeded)
        with torch.no_grad():  # finite gradients may make a direction that is not
            self._checks.append(stage.norm(direction))
        self.states = self.states or [state]  # the first dialogue's is the one that is committed
        self._displacements.append(stage.displacement_norm)
        return direction

    def _converse(self, stage: Stage, state: State, parts: list[int]) -> Generator[Pass, None, Vector]:
        dialogue = self.method.passes(state)
        evaluation: Any = None
        try:
            while True:
                evaluation = yield from self._evaluate(stage, _ask(dialogue, evaluation), parts)
        except _Finished as finished:
            return finished.direction

    def _evaluate(self, stage: Stage, at: At, parts: list[int]) -> Generator[Pass, None, Evaluation]:
        counts = not (self._counted or at.probe)
        self._counted |= counts
        p = Pass(at, counts, parts[0], stage.parameters, self.replicas, self.scaler)
        with stage.visit(p.at_weights, p.is_probe):
            stage.displace(at)
            del at  # what was released to the request need not live through the evaluation
            stage.clear_gradients()
            for part in parts:
                p.part = part
                yield p
        return self._evaluated(stage, p)

    @torch.no_grad()
    def _evaluated(self, stage: Stage, p: Pass) -> Evaluation:
        checks.not_unscaled(self.scaler, self._optimizers)
        evaluation = p.evaluation(stage.repeatable)
        norm = stage.norm(evaluation.gradient)
        self.evaluations += 1
        self.interfered |= p.interfered
        self._check(norm, evaluation.loss, stage.reach)
        if stage.last_counts:
            self._losses[-1], self._norms[-1], self._weights[-1] = evaluation.loss, norm, p.weight
        if p.agreed is not None:
            self._agreements.append(p.agreed)
        return evaluation

    def _check(self, norm: Tensor, *others: Scalar) -> None:
        """Let the step be skipped unless these are finite; their sum is where all of them are."""
        for other in others:
            norm = norm + (other.to(norm.device) if isinstance(other, Tensor) else other)
        self._checks.append(norm)

    # --- the end ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _conclude(self, direction: Vector, first: Stage) -> None:
        finite = torch.isfinite(torch.stack(self._checks)).all()
        if self._is_a_mean:
            finite = self._average(direction, finite, first.parameters)
        else:
            self.loss = self._losses[0]
        self.finite = self._on_host(finite, direction)
        if not self.finite:
            first.buffers_before.restore()
        self._stage = None
        first.set_gradients(self._for_grad(direction, first.parameters))

    def _on_host(self, finite: Tensor, direction: Vector) -> bool:
        """Wait for the device, once a step: whether everything was finite, what is None everywhere, and whether ranks agreed."""
        agreed = torch.stack(self._agreements).all() if self._agreements else torch.ones_like(finite)
        present = [] if self._present is None else [self._present]
        was_finite, together, *places = torch.cat([torch.stack([finite, agreed.to(finite.device)]), *present]).tolist()
        if not together:
            raise ValueError(messages.UNEQUAL_RECORDED)
        if places:
            direction[:] = V.restrict(direction, places)
        return was_finite

    @property
    def _is_a_mean(self) -> bool:
        """Whether the step's direction is the mean over several dialogues, here or on other replicas."""
        return len(self.rounds) > 1 or self.replicas.apart

    @torch.no_grad()
    def _weigh_(self, direction: Vector) -> None:
        """Let a dialogue count by the weight of its batch."""
        weight = self._weights[-1]
        if self._is_a_mean and (isinstance(weight, Tensor) or weight != 1):
            V.scale_(direction, weight)

    def _average(self, direction: Vector, finite: Tensor, parameters: list[Tensor]) -> Tensor:
        """Make a weighted sum over dialogues their mean, in place, and say whether all of them were finite."""
        total: Scalar = sum(self._weights)
        self.loss = torch.stack([loss * weight for loss, weight in zip(self._losses, self._weights)]).sum()
        if self.replicas.apart:
            self._present = self.replicas.average_(direction, parameters)
            self.loss, total, finite = self.replicas.mean(self.loss, total, finite, everywhere=True)
            finite = (finite == 1) & (total > 0)
        V.scale_(direction, 1 / total)
        self.loss = self.loss / total
        return finite

    def _for_grad(self, direction: Vector, parameters: list[Tensor]) -> Vector:
        """The direction as `.grad` shows it: times the scale, or inf for a scaler to skip, or None where nobody would look."""
        if self.scaler is None:
            return direction if self.finite else [None] * len(direction)
        if self.finite:
            V.scale_(direction, scale_of(self.scaler, parameters))
            return direction
        return V.each(lambda ts: [torch.full_like(t, torch.inf) for t in ts], direction)


class _Finished(Exception):
    """A dialogue has returned; StopIteration cannot be used for that inside a generator."""

    def __init__(self, direction: Vector) -> None:
        super().__init__()
        self.direction = direction


@torch.no_grad()
def _ask(dialogue: Generator[At, Evaluation, Vector], evaluation: Any) -> At:
    try:
        return dialogue.send(evaluation)
    except StopIteration as finished:
        raise _Finished(finished.value) from None
