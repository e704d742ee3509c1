"""Going from place to place: weights and buffers are moved, the loss is taken, and at the end both are back, bitwise."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from flatwise.landscape import buffers
from flatwise.landscape.buffers import Buffering
from flatwise.landscape.checkpoints import Place
from flatwise.modules import Buffers, measuring
from flatwise.objective import Circumstances, Objective, circumstances
from flatwise.objective.looks import Look, look
from flatwise.objective.randomness import python_seeded

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Survey:
    """How the losses of a slice are taken.

    Attributes:
        objective: the loss, without a graph where it can do without.
        buffers: what the model's buffers are at each place.
        statistics: the objective on the data from which they are recomputed.
        record: the circumstances.
        progress: called after each loss with how many are done, and of how many.
    """

    objective: Objective
    buffers: str
    statistics: Objective
    record: Circumstances
    progress: Progress | None

    def losses(self, marks: Sequence[Place], places: Iterable[Place], count: int) -> tuple[list[float], list[float]]:
        """The losses at the marks, with the buffers they came with, and at `count` places, with those that were chosen."""
        using = buffers.layers(self.objective) if self.buffers == "recomputed" else []
        found: list[float] = []
        with buffers.following(using), _away(self.objective) as go:
            for place in chain(marks, places):
                go(place)
                if using and len(found) >= len(marks):
                    buffers.recompute(self.statistics, using)
                found.append(float(self.objective.value()))
                if self.progress:
                    self.progress(len(found), len(marks) + count)
        return found[: len(marks)], found[len(marks) :]


def survey(
    objective: Objective,
    wanted: Buffering | None,
    statistics: Iterable[Any] | None,
    between: bool,
    step: int | None,
    check: bool,
    progress: Progress | None,
) -> Survey:
    """Make sure that the losses can be taken, before the first is.

    Raises:
        ValueError: a choice of buffers that is not possible or has no effect.
        RuntimeError: two evaluations do not agree; the message names the cause.
    """
    light, seen = _look(objective)
    chosen = buffers.choose(light, wanted, between)
    if statistics is not None and chosen != "recomputed":
        raise ValueError(f"statistics has no effect here: buffers are {chosen}, not recomputed")
    if check:
        light.check()
    source = light if statistics is None else light.on(statistics)
    return Survey(light, chosen, source, Circumstances(**circumstances(light, seen, step)), progress)


def _look(objective: Objective) -> tuple[Objective, Look]:
    """The objective without a graph, unless its loss differentiates something itself, and what its loss was seen to do."""
    light = objective.without_graph()
    try:
        return light, look(light)
    except RuntimeError:
        return objective, look(objective)


@contextmanager
def _away(objective: Objective) -> Generator[Callable[[Place], None]]:
    """A function that goes to a place; buffers that the place does not bring are those of the model.

    Modes and random states are looked after once more than each evaluation does, for a Ctrl-C while one puts them back.
    """
    home = Buffers(objective.model)

    def go(place: Place) -> None:
        home.restore()
        displacement.at(place.weights)
        buffers.install(objective, place.buffers or {})

    with measuring(objective.model), python_seeded(objective.seed), objective.displaced() as displacement:
        yield go
