import math

import pytest

from flatwise.report.curves import axis_of, curve, wants_log
from flatwise.report.study import Arm, Study, Trial
from flatwise.statistics import mean_interval


def trial(seed: int, losses: list[float], status: str = "finished") -> Trial:
    probes = [{"step": 10 * i, "epoch": i / 2, "train_loss": loss} for i, loss in enumerate(losses)]
    return Trial(seed, status, probes=probes)


def arm(*trials: Trial) -> Arm:
    return Arm("sam", "SAM", "method", trials)


def test_the_mean_and_its_interval_at_every_probe() -> None:
    found = curve(arm(trial(0, [3.0, 2.0]), trial(1, [5.0, 2.5])), "train_loss", "epoch")
    assert [point.x for point in found.points] == [0.0, 0.5]
    assert [point.y for point in found.points] == [mean_interval([3.0, 5.0]), mean_interval([2.0, 2.5])]


def test_only_steps_that_all_finished_runs_share() -> None:
    found = curve(arm(trial(0, [3.0, 2.0, 1.0]), trial(1, [5.0, 2.5])), "train_loss", "step")
    assert [point.x for point in found.points] == [0, 10]


def test_a_run_that_did_not_finish_is_kept_apart() -> None:
    runs = arm(
        trial(0, [3.0, 2.0]), trial(1, [9.0, 9.0], "diverged"), trial(2, [4.0], "unfinished"), Trial(3, "missing")
    )
    found = curve(runs, "train_loss", "step")
    assert [point.y.mean for point in found.points] == [3.0, 2.0]
    assert [list(run.points) for run in found.broken] == [[(0, 9.0), (10, 9.0)], [(0, 4.0)]]


def test_a_nan_counts_in_no_mean() -> None:
    found = curve(arm(trial(0, [3.0, math.nan]), trial(1, [5.0, 2.5])), "train_loss", "step")
    assert (found.points[1].y.mean, found.points[1].y.excluded) == (2.5, 1)
    assert found.values == [4.0, 2.5]


def test_on_a_logarithmic_axis_the_mean_is_geometric() -> None:
    found = curve(arm(trial(0, [1.0]), trial(1, [100.0])), "train_loss", "step", log=True)
    assert found.points[0].y.mean == pytest.approx(10.0)
    assert (found.points[0].y.low or 0) > 0


@pytest.mark.parametrize(("values", "log"), [([1, 5], False), ([1, 50], True), ([-1, 50], False), ([], False)])
def test_when_a_logarithmic_axis_helps(values: list[float], log: bool) -> None:
    assert wants_log(values) is log


def test_the_axis_is_epochs_where_there_are_any() -> None:
    epochs, steps = arm(trial(0, [1.0])), arm(Trial(0, "finished", probes=[{"step": 3}]))
    assert axis_of(Study("", "comparison", "", [epochs])) == "epoch"
    assert axis_of(Study("", "comparison", "", [epochs, steps])) == "step"
    assert axis_of(Study("", "edge", "", [epochs])) == "step"
