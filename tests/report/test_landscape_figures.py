"""The figures of landscapes: what stands where, and that walls, holes and odd names do no harm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from flatwise.report.landscape_figures import landscape_figures
from flatwise.report.levels import levels
from flatwise.report.palette import COLORS, Style

LENGTHS = [i / 10 for i in range(-10, 11)]
HERE = {"label": "the weights", "place": [0.0], "loss": 1.0}


def line(label: str, sharpness: float, name: str = "v₁", **changes: Any) -> dict[str, Any]:
    """A parabola of this curvature, on a base of 1."""
    losses = [1 + sharpness * x * x / 2 for x in LENGTHS]
    touching = {"value": 1.0, "slope": 0.0, "curvature": sharpness, "error": 0.0}
    found = {"kind": "line", "label": label, "name": name, "lengths": LENGTHS, "losses": losses, "norm": 1.0}
    return found | {"marks": [HERE], "buffers": "none", "parabola": touching, "barrier": None} | changes


def path(label: str, **changes: Any) -> dict[str, Any]:
    marks = [{"label": name, "place": [t], "loss": 0.5} for name, t in (("SGD", 0.0), ("<SAM>", 1.0))]
    positions = [-0.5, 0.0, 0.5, 1.0, 1.5]
    found = line(label, 0.0, "from SGD to SAM", kind="path", lengths=positions, losses=[2.0, 1.0, 3.0, 1.0, 2.0])
    return found | {"marks": marks, "parabola": None, "barrier": 2.0} | changes


def plane(label: str, loss: Callable[[float, float], float | None], **changes: Any) -> dict[str, Any]:
    rows = [[loss(x, y) for x in LENGTHS] for y in LENGTHS]
    mark = HERE | {"place": [0.0, 0.0]}
    found = {
        "kind": "plane",
        "label": label,
        "names": ["v₁", "v₂"],
        "norms": [1.0, 1.0],
        "cosine": 0.0,
        "marks": [mark],
    }
    return found | {"xs": LENGTHS, "ys": LENGTHS, "losses": rows, "buffers": "kept"} | changes


def bowl(x: float, y: float) -> float:
    return 1 + x * x + 2 * y * y


def test_lines_of_one_direction_share_a_figure() -> None:
    entries = [line("SGD", 9.0), line("SAM", 3.0), line("SGD", 1.0, "a random direction")]
    along_v1, at_random = landscape_figures(entries)
    assert [trace["name"] for trace in along_v1.data] == ["SGD", "SGD", "SAM", "SAM"]
    assert along_v1.layout["showlegend"]
    assert not at_random.layout["showlegend"]
    assert along_v1.title == "Loss along v₁"
    assert along_v1.layout["xaxis"]["title"]["text"] == "distance along v₁"
    assert "SGD 9.00, SAM 3.00" in along_v1.caption


def test_the_color_is_that_of_the_method_and_the_same_in_every_figure() -> None:
    entries = [line("a", 1.0, style="sam"), line("b", 2.0, style=Style("#123456", "dot")), line("SGD", 3.0)]
    (figure,) = landscape_figures(entries)
    solid = [trace["line"] for trace in figure.data if trace["line"]["dash"] != "dash"]
    assert [look["color"] for look in solid] == [COLORS["sam"], "#123456", COLORS["sgd"]]
    assert solid[1]["dash"] == "dot"


def test_the_parabola_lies_on_the_line_where_the_loss_is_one() -> None:
    (figure,) = landscape_figures([line("SGD", 4.0)])
    dashed, solid = figure.data
    assert dashed["line"]["dash"] == "dash"
    heights = dict(zip(dashed["x"], dashed["y"]))
    for x, y in zip(solid["x"], solid["y"]):
        assert heights[x] == pytest.approx(y)


def test_the_parabola_ends_at_the_frame() -> None:
    (figure,) = landscape_figures(
        [line("SGD", 4.0, parabola={"value": 1, "slope": 0, "curvature": 400, "error": None})]
    )
    low, high = figure.layout["yaxis"]["range"]
    drawn = [y for y in figure.data[0]["y"] if y is not None]
    assert drawn
    assert all(low <= y <= high for y in drawn)


def test_curvature_is_told_for_the_unit_direction() -> None:
    (figure,) = landscape_figures([line("SGD", 8.0, norm=2.0)])
    assert figure.caption.endswith("its curvature: 2.00.")
    assert figure.layout["xaxis"]["title"]["text"] == "multiples along v₁"


def test_the_ends_of_a_path_are_named_and_marked() -> None:
    training, test = path("training loss"), path("test loss", barrier=None, buffers="recomputed")
    (figure,) = landscape_figures([training, test])
    assert figure.layout["xaxis"]["tickvals"] == [0, 1]
    assert figure.layout["xaxis"]["ticktext"] == ["SGD", "&lt;SAM&gt;"]
    circles = [trace for trace in figure.data if trace["mode"] == "markers"]
    assert [(trace["x"], trace["y"]) for trace in circles] == [([0.0, 1.0], [0.5, 0.5])] * 2
    assert "Barrier: training loss 2.00, test loss –." in figure.caption
    assert figure.caption.endswith("Statistics of BatchNorm are recomputed at each point.")
    assert figure.layout["yaxis"]["range"][0] < 0.5  # the circles are in the frame


def test_each_plane_has_a_figure_and_planes_of_the_same_directions_share_their_colors() -> None:
    entries = [plane("SGD", lambda x, y: 3 * bowl(x, y)), plane("SAM", bowl), plane("other", bowl, names=["g", "h"])]
    figures = landscape_figures(entries)
    assert [figure.title for figure in figures] == ["SGD", "SAM", "other"]
    assert len({figure.name for figure in figures}) == 3
    scales = [(figure.data[0]["zmin"], figure.data[0]["zmax"]) for figure in figures]
    assert scales[0] == scales[1] != scales[2]


def test_a_plane_lies_as_it_was_measured() -> None:
    (figure,) = landscape_figures([plane("SGD", lambda x, y: 2 + x + 0.1 * y)])
    contour = figure.data[0]
    assert contour["z"][0][-1] == pytest.approx(2 + 1 - 0.1)
    assert contour["z"][-1][0] == pytest.approx(2 - 1 + 0.1)
    assert (contour["x"], contour["y"]) == (LENGTHS, LENGTHS)


def test_a_wall_does_not_swallow_the_valley() -> None:
    walled = plane("SGD", lambda x, y: bowl(x, y) - 2 + math.exp(12 * max(0.0, x + y - 0.5)))
    (figure,) = landscape_figures([walled])
    contour = figure.data[0]
    assert contour["zmax"] < 20 < max(max(row) for row in contour["z"])
    assert contour["colorbar"]["ticktext"][-1].startswith("≥ ")
    assert "the loss rises to" in figure.caption


def test_losses_that_differ_by_much_have_logarithmic_colors() -> None:
    (figure,) = landscape_figures([plane("SGD", lambda x, y: math.exp(8 * (x * x + y * y)) / 1000)])
    contour = figure.data[0]
    assert contour["z"][10][10] == pytest.approx(-3)
    assert contour["text"][10][10] == "0.00100"
    ticks = dict(zip(contour["colorbar"]["ticktext"], contour["colorbar"]["tickvals"]))
    assert all(math.log10(float(text)) == pytest.approx(place) for text, place in ticks.items())
    assert "Logarithmic colors" in figure.caption


def test_what_is_not_finite_is_left_out() -> None:
    holes = plane("SGD", lambda x, y: bowl(x, y) if x < 0.5 else None, cosine=0.4)
    broken = line("SGD", 4.0, losses=[None, *line("", 4.0)["losses"][1:]], parabola=None)
    for figure in landscape_figures([holes, broken]):
        json.dumps(figure.plot, allow_nan=False)
    _, across = landscape_figures([broken, holes])
    assert "Left empty: the loss is not finite." in across.caption
    assert "cosine 0.40" in across.caption
    assert across.data[0]["z"][0][-1] is None


def test_a_plane_through_three_checkpoints_is_true_to_scale_and_names_them() -> None:
    marks = [
        {"label": name, "place": place, "loss": None} for name, place in (("a", [0, 0]), ("<b>", [1, 0]), ("c", [0, 1]))
    ]
    (figure,) = landscape_figures([plane("three", bowl, kind="plane through three", marks=marks)])
    assert figure.layout["yaxis"]["scaleanchor"] == "x"
    assert [a["text"] for a in figure.layout["annotations"]] == ["a", "&lt;b&gt;", "c"]
    assert figure.data[1]["text"][1] == "&lt;b&gt;: loss not finite"


@pytest.mark.parametrize("value", [1.0, 0.0, None])
def test_a_constant_or_empty_plane_can_be_drawn(value: float | None) -> None:
    (figure,) = landscape_figures([plane("flat", lambda x, y: value)])
    json.dumps(figure.plot, allow_nan=False)
    assert figure.data[0]["zmin"] < figure.data[0]["zmax"]


def test_nothing_makes_no_figure() -> None:
    assert landscape_figures([]) == []


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.4), (0.2, 30.0), (-3.0, 5.0), (1e-6, 1e4), (2e-9, 2.1e-9)])
def test_ticks_are_round_ordered_and_on_the_scale(low: float, high: float) -> None:
    scale = levels([low + (high - low) * i / 100 for i in range(101)])
    ticks = scale.ticks()
    places = ticks["tickvals"]
    assert 2 <= len(places) <= 14
    assert places == sorted(places)
    assert all(scale.span[0] <= place <= scale.span[1] for place in places)
    for place, text in zip(places, ticks["ticktext"]):
        assert scale.value(place) == pytest.approx(
            float(text.removeprefix("≥ ").replace("−", "-")), rel=5e-3, abs=1e-12
        )
