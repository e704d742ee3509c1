"""What a comparison at equal steps gives to some methods: more gradient evaluations."""

from __future__ import annotations

from flatwise.report.quantities import plain
from flatwise.report.study import Arm, Study
from flatwise.statistics import mean_interval

ALIKE = 1.1
"""Numbers of evaluations up to this factor apart need no word."""


def cost_sentences(study: Study) -> list[str]:
    """One on the dearest and the cheapest method, where all took equally many steps and nothing shows them at equal cost."""
    if study.kind != "comparison" or study.sections or len(_counts(study, "steps")) != 1:
        return []
    costs = _counts(study, "evaluations")
    least, most = min(costs, default=0.0), max(costs, default=0.0)
    if not 0 < ALIKE * least < most:
        return []
    who, times = f"At equal steps {costs[most].label} took", f"{plain(most / least, 1)} times the gradient evaluations"
    return [f"{who} {times} of {costs[least].label}; flatwise compare --equal evaluations compares at equal cost."]


def _counts(study: Study, key: str) -> dict[float, Arm]:
    """The mean counts of the methods, those of controls left out, each with the first that has it."""
    found: dict[float, Arm] = {}
    for arm in study.arms:
        interval = mean_interval(arm.by_seed(key).values())
        if interval.n and arm.role == "method":
            found.setdefault(interval.mean, arm)
    return found
