"""The figures of spectra: densities that hold their mass, on every axis, and eigenvalues with their bars."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from flatwise.report.densities import BLUR, density
from flatwise.report.palette import COLORS
from flatwise.report.scales import Linear, SymmetricLog
from flatwise.report.spectrum_figures import density_figures, spectrum_figures

SIZE = 10_000


def network(label: str, top: float = 50.0, probes: int = 3, **changes: Any) -> dict[str, Any]:
    """A dense bulk around 0 and three outliers, as quadrature sees them."""
    noise = random.Random(label)
    outliers = [top / 3, top / 2, top]
    share = 1 / SIZE
    rows = [sorted(noise.gauss(0, 0.1) for _ in range(40)) + outliers for _ in range(probes)]
    weights = [[(1 - 3 * share) / 40] * 40 + [share] * 3 for _ in range(probes)]
    return {"label": label, "nodes": rows, "weights": weights, "size": SIZE, "eigenvalues": [top, top / 2]} | changes


def mass(xs: list[float], ys: list[float]) -> float:
    """The area under a density on an evenly spaced grid."""
    return math.fsum(ys) * (xs[1] - xs[0])


def lines(figure: Any) -> list[dict[str, Any]]:
    return [t for t in figure.data if t["mode"] == "lines" and t["line"]["width"] > 0]


@pytest.mark.parametrize("scale", [Linear(), SymmetricLog(0.01), SymmetricLog(1.0)])
def test_a_density_has_the_mass_of_all_eigenvalues(scale: Linear | SymmetricLog) -> None:
    found = density(network("SGD"), scale.place, scale.place(-5.0), scale.place(60.0))
    assert mass(found.places, found.values) == pytest.approx(1.0, rel=1e-3)


def test_a_single_eigenvalue_is_as_high_as_the_dotted_line() -> None:
    alone = {"label": "", "nodes": [[-1.0, 0.0, 10.0]], "weights": [[0.5, 0.5 - 1 / SIZE, 1 / SIZE]], "size": SIZE}
    found = density(alone, Linear().place, -2.0, 12.0)
    near = [value for place, value in zip(found.places, found.values) if abs(place - 10) < 0.1]
    assert max(near) == pytest.approx(found.single, rel=0.02)
    assert found.single == pytest.approx(1 / (SIZE * 14 / BLUR * math.sqrt(2 * math.pi)))


def test_the_error_is_that_of_the_mean_over_random_vectors() -> None:
    entry = {"label": "", "nodes": [[0.0, 1.0]] * 2, "weights": [[0.9, 0.1], [0.7, 0.3]], "size": 4}
    found = density(entry, Linear().place, -1.0, 2.0)
    at = min(range(len(found.places)), key=lambda i: abs(found.places[i] - 1.0))
    ratio = 0.1 / 0.2  # half of the distance over the mean
    assert found.errors[at] / found.values[at] == pytest.approx(ratio, rel=1e-6)
    assert density(entry | {"nodes": [[0.0, 1.0]], "weights": [[0.9, 0.1]]}, Linear().place, -1.0, 2.0).errors == []


def test_a_dense_bulk_is_no_comb() -> None:
    scale = SymmetricLog(0.02)
    even = network("SGD", probes=1) | {"nodes": [[0.02 * i for i in range(-20, 20)] + [10.0, 20.0, 50.0]]}
    found = density(even, scale.place, scale.place(-1.0), scale.place(60.0))
    inside = [v for x, v in zip(found.places, found.values) if abs(x) < scale.place(0.3)]
    assert min(inside) > 0.05 * max(inside)


@pytest.mark.parametrize("threshold", [1e-4, 0.01, 10.0])
def test_the_ticks_of_a_symmetric_axis_stand_where_their_numbers_do(threshold: float) -> None:
    scale = SymmetricLog(threshold)
    axis = scale.axis(scale.place(-threshold * 50), scale.place(threshold * 5e4))
    numbers = [float(text.replace("−", "-")) for text in axis["ticktext"]]
    assert 0.0 in numbers
    assert numbers == sorted(numbers)
    assert min(numbers) < 0 < max(numbers)
    assert axis["tickvals"] == pytest.approx([scale.place(number) for number in numbers])


def test_four_networks_stand_in_one_frame_with_their_colors() -> None:
    names = ["initialisation", "SGD", "SAM", "Eigen-SAM"]
    (figure,) = density_figures([network(name, 50.0 - 10 * i) for i, name in enumerate(names)])
    assert [line["name"] for line in lines(figure)] == names
    assert [line["line"]["color"] for line in lines(figure)][1:] == [COLORS[n] for n in ("sgd", "sam", "eigen-sam")]
    assert figure.layout["showlegend"]
    assert figure.layout["yaxis"]["type"] == "log"
    json.dumps(figure.plot, allow_nan=False)


def test_panels_share_their_axes_and_the_last_one_has_the_caption() -> None:
    panels = density_figures([network(f"network {i}", 10.0**i) for i in range(1, 6)])
    assert [panel.title for panel in panels] == [f"network {i}" for i in range(1, 6)]
    for axis in ("xaxis", "yaxis"):
        assert len({tuple(panel.layout[axis]["range"]) for panel in panels}) == 1
    assert [bool(panel.caption) for panel in panels] == [False] * 4 + [True]
    assert not panels[0].layout["showlegend"]
    assert len({panel.name for panel in panels}) == 5


def test_outliers_far_from_the_bulk_call_for_a_symmetric_axis() -> None:
    (near,) = density_figures([network("SGD", 2.0)])
    (far,) = density_figures([network("SGD", 2000.0)])
    assert "tickvals" not in near.layout["xaxis"]
    assert "per unit" in near.layout["yaxis"]["title"]["text"]
    assert "0" in far.layout["xaxis"]["ticktext"]
    assert "per decade" in far.layout["yaxis"]["title"]["text"]
    (linear,) = density_figures([network("SGD", 2000.0)], horizontal="linear")
    assert "tickvals" not in linear.layout["xaxis"]


def test_eigenvalues_are_marked_where_they_are() -> None:
    (figure,) = density_figures([network("SGD", 60.0)])
    (marks,) = [trace for trace in figure.data if trace["mode"] == "markers"]
    labels = [float(text) for text in marks["text"]]
    assert labels == [60.0, 30.0]
    ticks = dict(zip(figure.layout["xaxis"]["ticktext"], figure.layout["xaxis"]["tickvals"]))
    assert ticks["10"] < marks["x"][1] < marks["x"][0] < figure.layout["xaxis"]["range"][1]
    (without,) = density_figures([network("SGD", eigenvalues=None)])
    assert all(trace["mode"] == "lines" for trace in without.data)
    assert "Ticks below" not in without.caption


def test_the_band_lies_around_the_density() -> None:
    (figure,) = density_figures([network("SGD")])
    low, high, mean = figure.data[:3]
    assert high["fill"] == "tonexty"
    assert all(0 < a <= m <= b for a, m, b in zip(low["y"], mean["y"], high["y"]))
    (single,) = density_figures([network("SGD", probes=1)])
    assert len(lines(single)) == len([t for t in single.data if t["mode"] == "lines"]) == 1
    assert "Shade" not in single.caption


def test_a_spectrum_of_zeros_can_be_drawn() -> None:
    (figure,) = density_figures([{"label": "0", "nodes": [[0.0]], "weights": [[1.0]], "size": 5}])
    json.dumps(figure.plot, allow_nan=False)


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "auto", "linear" or "symmetric log"'):
        density_figures([network("SGD")], horizontal="log")  # type: ignore[arg-type]


def run(label: str, steps: list[int | None], values: list[float]) -> list[dict[str, Any]]:
    return [
        {"label": label, "step": step, "values": [v * (1 + i) for v in values], "residuals": [0.1] * len(values)}
        for i, step in enumerate(steps)
    ]


def test_runs_are_compared_at_their_ends_and_followed_along_their_steps() -> None:
    entries = [*run("SGD", [0, 10, 20], [3.0, 2.0]), *run("SAM", [0, 10, 20], [2.0, 1.0])]
    ranks, steps = spectrum_figures(entries)
    assert [(t["name"], t["x"], t["y"]) for t in ranks.data] == [("SGD", [1, 2], [9, 6]), ("SAM", [1, 2], [6, 3])]
    assert ranks.data[0]["error_y"]["array"] == [0.1, 0.1]
    tops = [trace for trace in steps.data if trace["mode"] == "lines+markers"]
    assert [(t["name"], t["x"], t["y"]) for t in tops] == [
        ("SGD", [0, 10, 20], [3, 6, 9]),
        ("SAM", [0, 10, 20], [2, 4, 6]),
    ]
    assert "Thin" in steps.caption


def test_a_single_run_is_shown_at_some_of_its_steps() -> None:
    ranks, _ = spectrum_figures(run("SAM", list(range(0, 1200, 100)), [3.0, 2.0]))
    assert [trace["name"] for trace in ranks.data] == ["step 0", "step 300", "step 600", "step 800", "step 1,100"]
    assert len({trace["line"]["color"] for trace in ranks.data}) == 5
    assert ranks.data[-1]["line"]["color"] == COLORS["sam"]


def test_steps_in_any_order_are_sorted() -> None:
    (steps,) = spectrum_figures(run("SAM", [20, 0], [2.0]))
    assert (steps.data[0]["x"], steps.data[0]["y"]) == ([0, 20], [4, 2])


def test_what_is_missing_makes_no_figure_and_no_harm() -> None:
    assert spectrum_figures([]) == []
    assert spectrum_figures(run("SAM", [0], [2.0])) == []
    assert spectrum_figures([{"label": "SAM", "values": [None], "residuals": [None]}]) == []
    (ranks,) = spectrum_figures([{"label": "SAM", "values": [3.0, None], "residuals": [None, None]}])
    json.dumps(ranks.plot, allow_nan=False)
    assert density_figures([]) == []


def test_the_bars_are_in_the_frame() -> None:
    entries = [{"label": "SAM", "values": [5.0, 4.0], "residuals": [2.0, 3.0]}]
    (ranks,) = spectrum_figures(entries)
    low, high = ranks.layout["yaxis"]["range"]
    assert low < 1.0
    assert high > 7.0
