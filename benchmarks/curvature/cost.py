"""What it costs to know the top of the spectrum within one percent, by everybody, in gradients."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.curvature.contenders import Contender, Found, Search, Settings
from benchmarks.curvature.counting import Operations, TooMuch, gradient, operations_of, passes
from benchmarks.curvature.problems import Problem
from benchmarks.curvature.training import loss_of

WITHIN = 0.01
"""The relative error that is allowed, of each eigenvalue."""


@dataclass(frozen=True)
class Question:
    """What everybody is asked.

    Attributes:
        name: of the table.
        k: so many eigenvalues.
        ladder: which of a contender's lists of settings is gone through; None: its defaults, with its checks.
        limit: gradients after which it is given up.
        warm: whether the eigenvector of some steps before is given.
    """

    name: str
    k: int
    ladder: str | None
    limit: float
    warm: bool = False

    def settings(self, contender: Contender) -> list[Settings]:
        """What is tried, one after the other."""
        return [{}] if self.ladder is None else getattr(contender, self.ladder)

    def search(self, problem: Problem, seed: int, settings: Settings) -> Search:
        return Search(self.k, seed, settings, problem.start_parts() if self.warm else None)


QUESTIONS = {
    q.name: q
    for q in (
        Question("top 1, defaults", 1, None, limit=400),
        Question("top 1", 1, "cold", limit=400),
        Question("top 10", 10, "many", limit=600),
        Question("top 1, warm", 1, "warm", limit=400, warm=True),
    )
}


@dataclass
class Row:
    """A contender's answers to a question, one entry of each list for each run.

    Attributes:
        settings: the first within the allowed error in every run that was tried; None: none was.
        work, products, forward, backward: of the runs that were counted. Work is in gradients: floating-point operations.
        errors, seconds, gradients: of the runs that were timed. Gradients are time divided by that of a gradient.
    """

    contender: str
    version: str
    question: str
    settings: Settings | None = None
    work: list[float] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    remark: str = ""


def relative_error(values: Sequence[float], exact: Sequence[float]) -> float:
    """The largest relative error of any eigenvalue; one that is missing is wrong altogether."""
    found = [*values, *[0.0] * (len(exact) - len(values))]
    return max(abs(a - b) / abs(b) for a, b in zip(found, exact))


COUNTED = 0
"""The seed of the runs that are counted; those that are timed have seeds after it."""


def error_of(found: Found, problem: Problem, k: int) -> float:
    return relative_error(found.values, problem.values[:k].tolist())


# --- counted ----------------------------------------------------------------------------------------------------------


def chosen(question: Question, contender: Contender, problems: Sequence[Problem]) -> Row:
    """Go through the settings until the answer is within the allowed error for every problem; defaults as they are."""
    row, closest = Row(contender.name, contender.version or "", question.name), math.inf
    for settings in question.settings(contender):
        tried = replace(row, settings=settings, work=[], products=[], forward=[], backward=[])
        try:
            error = worst((counted(tried, question, contender, p) for p in problems), question)
        except TooMuch:
            row.remark = f"given up after {question.limit:g} gradients, {label(settings)}" + _at_best(closest)
            return row
        if error <= WITHIN or question.ladder is None:
            return tried
        closest = min(closest, error)
    row.remark = _at_best(closest).removeprefix("; ") or "takes no start vector"
    return row


def _at_best(error: float) -> str:
    """How near the settings came before."""
    return f"; at best {error:.1%} off" if math.isfinite(error) else ""


def worst(errors: Iterable[float], question: Question) -> float:
    """The largest error; no further run is made after one that is not allowed, except of defaults."""
    largest = 0.0
    for error in errors:
        largest = max(largest, error)
        if largest > WITHIN and question.ladder is not None:
            break
    return largest


def counted(row: Row, question: Question, contender: Contender, problem: Problem) -> float:
    """One run, its counts entered; its error."""
    unit = operations_of(lambda: gradient(problem.model, loss_of, problem.batch))
    action = prepared(question, contender, problem, COUNTED, row.settings or {})
    with passes(problem.model, len(problem.batch[0])) as through, Operations(limit=question.limit * unit) as work:
        found = action()
    row.work.append(work.total / unit)
    row.products.append(found.products)
    row.forward.append(through.forward)
    row.backward.append(through.backward)
    return error_of(found, problem, question.k)


def prepared(
    question: Question, contender: Contender, problem: Problem, seed: int, settings: Settings
) -> Callable[[], Found]:
    """What is counted and timed: in a warm start, what can be used again is there already."""
    search = question.search(problem, seed, settings)
    if question.warm:
        handle = contender.opened(problem, False)
        return lambda: contender.solve(handle, search)
    return lambda: contender.solve(contender.opened(problem, question.ladder is None), search)


# --- timed ------------------------------------------------------------------------------------------------------------


def timed(
    rows: Sequence[Row], question: Question, contenders: Sequence[Contender], problem: Problem, seed: int
) -> None:
    """One round: everybody in turn, a gradient before each; entered as a multiple of the median gradient of the round."""
    able = [(row, c) for row, c in zip(rows, contenders, strict=True) if row.settings is not None]
    units, times = [], []
    for row, contender in able:
        action = prepared(question, contender, problem, seed, row.settings or {})
        units += [clock(lambda: gradient(problem.model, loss_of, problem.batch))[0] for _ in range(2)]
        seconds, found = clock(action)
        row.errors.append(error_of(found, problem, question.k))
        row.seconds.append(seconds)
        times.append(seconds)
    for (row, _), seconds in zip(able, times):
        row.gradients.append(seconds / statistics.median(units))


def clock(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


# --- all of it --------------------------------------------------------------------------------------------------------


def measure(question: Question, contenders: Sequence[Contender], problems: Sequence[Problem], rounds: int) -> list[Row]:
    """Choose settings, then time everybody in `rounds` rounds, each of the next problem and with other start vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = []
        for contender in contenders:
            rows.append(chosen(question, contender, problems))
            print("  counted:", line(rows[-1]), flush=True)
        for i in range(rounds):
            timed(rows, question, contenders, problems[i % len(problems)], seed=COUNTED + 1 + i)
    return rows


def label(settings: Settings | None) -> str:
    """Settings in words."""
    if not settings:
        return "defaults"
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Median and range."""
    if not values:
        return ""
    middle, low, high = statistics.median(values), min(values), max(values)
    shown = format(middle, form)
    return shown if low == high else f"{shown} ({format(low, form)} to {format(high, form)})"


def line(row: Row) -> str:
    """A row for the terminal."""
    if row.settings is None:
        return f"{row.contender:38} {row.remark}"
    parts = [f"{row.contender:38} {label(row.settings):34}", f"products {spread(row.products, '.0f'):16}"]
    parts += [f"passes {spread(row.forward, '.0f')} + {spread(row.backward, '.0f')}", f"work {spread(row.work)}"]
    if row.gradients:
        parts += [f"time {spread(row.gradients)}", f"error {spread(row.errors, '.2%')}"]
    return "  ".join(parts)
