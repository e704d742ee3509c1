"""Figures for a paper: what the page shows, drawn by matplotlib."""

import builtins
import re
import sys
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from report.test_claim_page import HEAT, LINE, PANEL, left

from flatwise.report import build, build_claims, check_formats, tell
from flatwise.report.figures import Figure
from flatwise.report.paper_figures import STYLE, canvas_of, draw


def axes_of(tmp_path, *panels):
    return [axes for axes in canvas_of(tell(left(tmp_path, panels=panels)).figures).axes if axes.get_title()]


def test_curves_are_those_of_the_page(tmp_path):
    (axes,) = axes_of(tmp_path, PANEL)
    mean, level = axes.get_lines()
    assert mean.get_label() == "SAM <i>"
    np.testing.assert_array_equal(mean.get_ydata(), LINE["y"])
    assert (level.get_label(), level.get_linestyle()) == ("2/lr", "--")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("step", "loss", "Loss")


def test_the_band_reaches_from_its_lower_to_its_upper_border(tmp_path):
    (axes,) = axes_of(tmp_path, PANEL)
    (band,) = (drawn for drawn in axes.collections if isinstance(drawn, FillBetweenPolyCollection))
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(0.0, 2.0), (0.0, 4.0), (2.0, 0.5), (2.0, 1.5)} <= corners


def test_fields_of_a_heat_map_hold_their_numbers(tmp_path):
    (axes,) = axes_of(tmp_path, HEAT)
    (image,) = axes.get_images()
    np.testing.assert_array_equal(image.get_array().filled(np.nan), HEAT["values"])
    assert sorted(text.get_text() for text in axes.texts) == sorted(["1.00", "2.00", "3.00", "0.500", "1.50"])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "0.2", "0.5"]
    low, high = image.get_clim()
    assert (low + high) / 2 == HEAT["middle"]


def test_long_labels_leave_a_heat_map_its_room(tmp_path):
    """Fields as narrow as their numbers cannot be read."""
    rows = [f"wrn-10-1 on fashion-mnist, {n} images" for n in (300, 500, 1000)]
    columns = ["SGD", "SAM", "Eigen-SAM", "SAM at equal norm"]
    heat = HEAT | {"rows": rows, "columns": columns, "values": [[-1.25] * 4] * 3}
    with mpl.rc_context(STYLE):
        canvas = canvas_of(tell(left(tmp_path, panels=[heat])).figures)
        canvas.draw_without_rendering()
    (axes,) = (axes for axes in canvas.axes if axes.get_title())
    field = axes.get_window_extent().width / 4
    widest = max(text.get_window_extent().width for text in axes.texts)
    assert field > 2 * widest
    names = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(names))
    assert all(label.get_text().count("\n") == 1 for label in axes.get_yticklabels())


@pytest.mark.parametrize(
    ("number", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (6, (2, 3))]
)
def test_panels_are_set_as_in_a_paper(tmp_path, number, shape):
    axes = axes_of(tmp_path, *[PANEL] * number)
    assert len(axes) == number
    grid = axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


def test_one_legend_below_names_the_curves_of_all_panels(tmp_path):
    canvas = canvas_of(tell(left(tmp_path, panels=[PANEL, PANEL | {"levels": {"edge": 1.0}}])).figures)
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["SAM <i>", "2/lr", "edge"]
    assert not any(axes.get_legend() for axes in canvas.axes)  # where it would cover curves


def test_a_curve_has_its_color_in_every_panel(tmp_path):
    line = PANEL["lines"][0]
    both, one = (PANEL | {"lines": [line | {"label": label} for label in labels]} for labels in ("ab", "b"))
    found = [
        {curve.get_label(): curve.get_color() for curve in axes.get_lines()} for axes in axes_of(tmp_path, both, one)
    ]
    assert found[0]["b"] == found[1]["b"] != found[0]["a"]


def test_the_same_figure_is_the_same_file_and_nothing_else_changes(tmp_path):
    figures, before = tell(left(tmp_path)).figures, dict(mpl.rcParams)
    (first,), (second,) = (draw(figures, tmp_path / name, ["pdf"]) for name in ("a", "b"))
    assert first.read_bytes().startswith(b"%PDF")
    assert first.read_bytes() == second.read_bytes()
    assert dict(mpl.rcParams) == before


def test_letters_stay_letters_in_a_pdf(tmp_path):
    (file,) = draw(tell(left(tmp_path)).figures, tmp_path / "a", ["pdf"])
    assert b"/TrueType" in file.read_bytes() or b"/CIDFontType2" in file.read_bytes()


def test_figures_stand_beside_the_page_of_a_claim(tmp_path):
    file = left(tmp_path)
    build_claims(tmp_path, ["pdf", "png"])
    assert {one.name for one in file.parent.iterdir()} >= {"example.pdf", "example.png"}


def test_each_figure_of_a_comparison_is_a_file(demo):
    build(demo, ["pdf"])
    drawn = {file.stem for file in (demo / "figures").iterdir()}
    assert {"comparison-accuracy", "comparison-eigenvalue", "edge-sam", "edge-loss"} <= drawn
    assert len(drawn) == 8


def test_what_the_page_hides_at_first_is_not_drawn():
    def trace(name):
        return {"x": [0, 1], "y": [0, 1], "mode": "lines", "name": name, "meta": name, "line": {"color": "#000000"}}

    layout = {"annotations": [{"name": "sam", "text": "SAM"}]}
    (axes,) = canvas_of([Figure("f", "t", "", [trace("sam"), trace("other")], layout)]).axes
    assert [line.get_label() for line in axes.get_lines()] == ["sam"]


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *rest, **more)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(builtins, "__import__", without)
    check_formats([])
    with pytest.raises(ValueError, match=re.escape('pip install ".[figures]"')):
        check_formats(["pdf", "png"])
