import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatwise.report.edge_figures import edge_figures
from flatwise.report.figures import Figure, padded, spread, training_figures
from flatwise.report.palette import styles
from flatwise.report.study import Arm, Study, Trial, read


def drawn(folder: Path) -> tuple[Study, list[Figure]]:
    study = read(folder)
    return study, training_figures(study, styles(study))


def lines(figure: Figure) -> list[dict[str, Any]]:
    return [trace for trace in figure.data if "text" in trace]


def test_the_four_figures_of_a_comparison(demo: Path) -> None:
    study, figures = drawn(demo)
    assert [figure.name.split("-")[1] for figure in figures] == ["accuracy", "eigenvalue", "alignment", "loss"]
    for figure in figures:
        json.dumps(figure.plot, allow_nan=False)
        assert figure.layout["xaxis"]["title"]["text"] == "epoch"
    accuracy, eigenvalue, alignment, _ = figures
    assert [trace["meta"] for trace in lines(accuracy)] == [arm.name for arm in study.arms]
    assert accuracy.layout["yaxis"]["title"]["text"] == "test accuracy (%)"
    assert eigenvalue.layout["yaxis"]["type"] == "log"
    # SGD has no displacement; Eigen-SAM has a tracked vector as well.
    assert [trace["meta"] for trace in lines(alignment)] == [
        "sam",
        "eigen-sam",
        "sam-equal-norm",
        "reverse-sam",
        "eigen-sam",
    ]
    assert lines(alignment)[-1]["line"]["dash"] == "dot"


def test_the_band_is_the_interval_around_the_mean(demo: Path) -> None:
    _, (accuracy, *_) = drawn(demo)
    low, high, mean = accuracy.data[:3]
    assert high["fill"] == "tonexty"
    assert all(a < m < b for a, m, b in zip(low["y"], mean["y"], high["y"]))


def test_controls_are_dashed_and_colors_are_the_same_in_every_study(demo: Path) -> None:
    study = read(demo)
    assert study.edge is not None
    chosen = styles(study, study.edge)
    assert [name for name, style in chosen.items() if style.dash == "dash"] == ["sam-equal-norm"]
    assert len({chosen[arm.name].color for arm in study.arms}) == 5
    assert chosen == styles(study.edge, study)


def test_many_arms_of_one_method_have_different_colors() -> None:
    arms = [Arm(f"sam-{i}", "SAM", "method", [Trial(0, "finished", {"method": "sam"})]) for i in range(6)]
    assert len({style.color for style in styles(Study("", "comparison", "", arms)).values()}) == 6


def test_edge_panels_share_one_axis_and_show_the_edges(demo: Path) -> None:
    study = read(demo / "edge")
    panels = edge_figures(study, styles(study))
    assert [panel.title for panel in panels] == ["GD", "SAM", "Eigen-SAM"]
    assert len({tuple(panel.layout["yaxis"]["range"]) for panel in panels}) == 1
    # GD's own edge is 2/lr: one line less.
    assert [len(lines(panel)) for panel in panels] == [2, 3, 3]
    assert [panel.layout["annotations"][0]["text"] for panel in panels] == [
        "its edge 2/lr = 2",
        "2/lr = 10",
        "2/lr = 10",
    ]
    assert panels[1].layout["annotations"][0]["y"] == math.log10(10)


@pytest.mark.parametrize(("start", "side"), [(0.1, "bottom"), (0.8, "top")])
def test_the_label_of_the_edge_keeps_out_of_the_way(start: float, side: str) -> None:
    probe = {"edge": 0.5, "gd_edge": 0.5, "edge_name": "GD edge 2/lr"}
    probes = [probe | {"step": step, "top_eigenvalue": value} for step, value in ((0, start), (10, 0.5))]
    study = Study("", "edge", "", [Arm("gd", "GD", "method", [Trial(0, "finished", probes=probes)])])
    (panel,) = edge_figures(study, styles(study))
    assert panel.layout["annotations"][0]["yanchor"] == side


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_labels_are_moved_apart_and_stay_in_order(values: list[float], gap: float) -> None:
    heights = spread(sorted(values), gap, (-1.0, 1.0))
    assert all(b - a >= gap * (1 - 1e-9) for a, b in pairwise(heights))
    assert heights[0] >= -1 - 1e-9
    assert heights[-1] <= 1 + 1e-9


def test_labels_that_are_far_apart_stay_where_they_are() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1, (0.0, 1.0)) == [0.1, 0.5, 0.9]


def test_an_axis_has_room_around_the_values_and_ends_at_its_bounds() -> None:
    low, high = padded([1.0, 2.0], log=False)
    assert low < 1.0 < 2.0 < high
    assert padded([0.2, 0.99], log=False, bounds=(0.0, 1.01)) == (0.0, 1.01)
    assert padded([], log=True) == (0.0, 1.0)
    low, high = padded([-5.0, 10.0, 1000.0], log=True)
    assert low < 1.0 < 3.0 < high
