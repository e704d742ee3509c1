"""One network measured: the loss, its gradient, and the quantities of a plan, each kept as soon as it is there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from flatwise import vectors as V
from flatwise.curvature import hessian
from flatwise.measurements.meter import Meter
from flatwise.measurements.plan import Plan
from flatwise.measurements.quantities import QUANTITIES, Work, expected_products
from flatwise.measurements.subject import Subject
from flatwise.processes import Progress

Found: TypeAlias = dict[str, Any]


def measure(
    subject: Subject,
    plan: Plan,
    *,
    before: Mapping[str, Any] | None = None,
    keep: Callable[[Found], None] = lambda found: None,
    progress: Progress = lambda done, total: None,
) -> Found:
    """Measure what the plan wants; nothing about the network is changed.

    Args:
        subject: what is measured.
        plan: how.
        before: what an earlier call has kept: it is not measured again.
        keep: called with all that is there, after every quantity.
        progress: called with how much is done, and how much there is to do, in products.

    Returns:
        The numbers as JSON values: `loss`, `gradient_norm`, `record`, one mapping for each quantity with the `products`,
        `seconds` and `gradients` that it took, `warnings`, and `complete`. Where the loss is not finite, that is all there is,
        and `reason` says so.
    """
    plan = plan.settled()
    found: Found = {"complete": False, "step": subject.step, "data": subject.data, "warnings": []} | dict(before or {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if found.get("reason") is None:
            _measure(subject, plan, found, keep, progress)
    found["warnings"] += list(dict.fromkeys(str(warning.message) for warning in caught))
    found["complete"] = True
    keep(found)
    return found


def _measure(subject: Subject, plan: Plan, found: Found, keep: Callable[[Found], None], progress: Progress) -> None:
    started = time.perf_counter()
    found["loss"] = float(subject.objective.value())
    if not math.isfinite(found["loss"]):
        found |= {
            "gradient_norm": math.nan,
            "reason": f"the loss is {found['loss']}, so there is no curvature to measure",
        }
        return
    work = _work(subject, plan, found, progress)
    found["record"] = None if work.operator.record is None else vars(work.operator.record).copy()
    found["set_up_seconds"] = time.perf_counter() - started
    keep(found)
    for name in plan.what:
        if name not in found:
            found[name] = work.meter.took(lambda name=name: QUANTITIES[name](work))
            keep(found)


def _work(subject: Subject, plan: Plan, found: Found, progress: Progress) -> Work:
    """The Hessian with its counter, and how long a gradient takes."""
    operator = hessian(subject.objective, plan.engine, step=subject.step)
    meter = Meter(sum(expected_products(plan).values()), progress)
    found["gradient_norm"] = float(V.norm(subject.objective.gradient()))
    found["gradient_seconds"] = meter.gradient = _seconds_of_a_gradient(subject)
    return Work(subject, plan, meter.watched(operator), meter)


def _seconds_of_a_gradient(subject: Subject) -> float:
    """Of the fastest of some: as many as a second has room for, at least one."""
    taken: list[float] = []
    while not taken or (len(taken) < 5 and sum(taken) + taken[-1] < 1.0):
        began = time.perf_counter()
        subject.objective.gradient()
        taken.append(time.perf_counter() - began)
    return min(taken)
