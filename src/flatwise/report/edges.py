"""How close full-batch runs come to their edge of stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatwise.report.study import Arm, Record, Study, Trial, number
from flatwise.statistics import median

NEAR = (0.9, 1.1)


@dataclass(frozen=True)
class EdgeRatio:
    """Medians over the second half of one run: of top eigenvalue / own edge, and of top eigenvalue / (2/lr)."""

    trial: Trial
    to_edge: float
    to_gd_edge: float
    probes: int


@dataclass(frozen=True)
class EdgeResult:
    """The ratios of one arm, and the name of its edge."""

    arm: Arm
    edge_name: str
    ratios: Sequence[EdgeRatio]

    @property
    def measured(self) -> list[EdgeRatio]:
        """The ratios of the runs that arrived and have some."""
        return [r for r in self.ratios if r.trial.status == "finished" and math.isfinite(r.to_edge)]

    @property
    def place(self) -> str:
        """Where the top eigenvalue is in every seed: "at", "below" or "above" the edge, or "unclear"."""
        values = [ratio.to_edge for ratio in self.measured]
        tests = {
            "at": lambda r: NEAR[0] <= r <= NEAR[1],
            "below": lambda r: r < NEAR[0],
            "above": lambda r: r > NEAR[1],
        }
        return next((name for name, test in tests.items() if values and all(map(test, values))), "unclear")


def edge_results(study: Study) -> list[EdgeResult]:
    """One result for each arm in which an edge was recorded."""
    arms = [arm for arm in study.arms if any("edge" in probe for trial in arm.trials for probe in trial.probes)]
    return [EdgeResult(arm, edge_name(arm), [_ratio(trial) for trial in arm.trials]) for arm in arms]


def edge_name(arm: Arm) -> str:
    """What the arm's own edge is called in its records."""
    names = (str(probe["edge_name"]) for trial in arm.trials for probe in trial.probes if "edge_name" in probe)
    return next(names, "its edge")


def is_gd_edge(name: str) -> bool:
    """Whether the arm's own edge is 2/lr."""
    return "2/lr" in name


def _ratio(trial: Trial) -> EdgeRatio:
    probes = _second_half([probe for probe in trial.probes if "edge" in probe])
    to_edge = [_quotient(probe, "edge") for probe in probes]
    to_gd_edge = [_quotient(probe, "gd_edge") for probe in probes]
    return EdgeRatio(trial, median(to_edge), median(to_gd_edge), sum(map(math.isfinite, to_edge)))


def _second_half(probes: Sequence[Record]) -> list[Record]:
    last = max((number(probe, "step") for probe in probes), default=0.0)
    return [probe for probe in probes if number(probe, "step") >= last / 2]


def _quotient(probe: Record, edge: str) -> float:
    below = number(probe, edge)
    return number(probe, "top_eigenvalue") / below if below > 0 else math.nan
