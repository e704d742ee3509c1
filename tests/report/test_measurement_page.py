"""The page about measured networks, from files as `flatwise measure` leaves them."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from flatwise.report import build_measurements, print_measurements
from flatwise.report.measured import picture, read_networks
from flatwise.report.measured_table import measured_rows, sentences
from flatwise.runs import Run, RunError, write_json

PLAN = {"what": ["eigenvalues", "trace", "density", "landscape"], "top": 2, "seed": 0}
SPENT = {"products": 10, "seconds": 0.5, "gradients": 25.0}
RECORD = {"engine": "double", "samples": 60.0, "dtype": "float32", "error": 0.0}


def content(label, top, step=None, **changes):
    """What the file of a network holds."""
    return {
        "complete": True,
        "label": label,
        "source": {"kind": "function", "function": label},
        "plan": PLAN,
        "data": {},
        "step": step,
        "loss": 2.3 - top / 10,
        "gradient_norm": 0.5,
        "record": RECORD,
        "warnings": [],
        "environment": {"versions": {"torch": "2.14.1"}, "cpu": "Some CPU"},
        "eigenvalues": SPENT
        | {
            "top": {"values": [top, top / 2], "residuals": [0.012, 0.013]},
            "lowest": {"values": [-0.5], "residuals": [0.01]},
            "converged": True,
            "alignment_gradient": 0.3,
        },
        "trace": SPENT | {"value": 10 * top, "standard_error": 1.3},
        "density": SPENT
        | {
            "nodes": [[-0.5, 0.0, top]] * 2,
            "weights": [[0.1, 0.8, 0.1], [0.2, 0.7, 0.1]],
            "size": 100,
            "negative": {"value": 0.15, "standard_error": 0.05},
        },
    } | changes


@pytest.fixture
def written(tmp_path):
    """Write the file of a network of a run, which is made if it is not there; gives its path."""

    def write(run, method, seed, step, top, **changes):
        folder = tmp_path / run
        if not folder.exists():
            environment = {"command": "flatwise train", "versions": {}}
            made = Run.create(folder, {"method": method, "seed": seed, "data": "digits", "lr": 0.1}, environment)
            made.finish("finished", {"steps": 20})
        source = {"kind": "run", "run": str(folder), "step": step, "file": None, "data_root": None}
        path = folder / "measurements" / "abc" / f"step-{step:08d}.json"
        write_json(path, content(run, top, step, source=source, data={"data": "digits"}, **changes))
        return path

    return write


@pytest.fixture
def methods(written):
    """SGD and SAM from the same initial weights, which are step 0."""
    ends = {"sgd": (8.0, 4.0), "sam": (3.0, 2.0)}
    return [
        written(method, method, 0, step, top)
        for method, (late, early) in ends.items()
        for step, top in ((20, late), (0, 1.5), (10, early))
    ]


def test_networks_are_ordered_by_run_and_step_in_the_colour_of_their_method(methods):
    networks = read_networks(methods)
    assert [n.label for n in networks] == [f"{m}, step {s}" for m in ("SGD", "SAM") for s in (0, 10, 20)]
    assert [n.style.color for n in networks] == ["#12967a"] * 3 + ["#2a7fc9"] * 3


def test_one_picture_has_the_initialisation_and_the_end_of_every_method(methods):
    shown = picture(read_networks(methods), "density")
    assert [(label, network.step) for label, _, network in shown] == [("initialisation", 0), ("SGD", 20), ("SAM", 20)]
    assert len({style.color for _, style, _ in shown}) == 3


def test_different_initial_weights_are_no_common_initialisation(methods, written):
    methods[4] = written("sam", "sam", 0, 0, 1.4)
    assert [label for label, _, _ in picture(read_networks(methods), "density")] == ["SGD", "SAM"]


def test_a_single_run_is_shown_from_first_to_last(written):
    files = [written("sam", "sam", 0, step, 1.0 + step) for step in range(0, 70, 10)]
    shown = picture(read_networks(files), "density")
    assert [label for label, _, _ in shown] == ["initialisation", "step 20", "step 40", "step 60, the last"]


def test_the_sentences_say_the_end_and_the_beginning(methods):
    assert sentences(read_networks(methods)) == [
        "The top Hessian eigenvalue is 8.00 with SGD and 3.00 with SAM; at initialisation it is 1.50.",
        "The trace is 80.0 ± 1.3 with SGD and 30.0 ± 1.3 with SAM; at initialisation it is 15.0 ± 1.3.",
        "The negative part of the spectrum is 15.0 ± 5.0\u00a0% with SGD and 15.0 ± 5.0\u00a0% with SAM; "
        "at initialisation it is 15.0 ± 5.0\u00a0%.",
    ]


def test_numbers_that_are_not_of_the_end_have_their_step(written):
    starts = [written(method, method, 0, 0, top) for method, top in (("sgd", 2.0), ("sam", 3.0))]
    first = "The top Hessian eigenvalue is {} with SGD{} and {} with SAM{}."
    assert sentences(read_networks(starts))[0] == first.format(
        "2.00", " at initialisation", "3.00", " at initialisation"
    )
    later = [written("sgd", "sgd", 0, 10, 4.0), written("sam", "sam", 0, 20, 5.0)]
    assert sentences(read_networks(later))[0] == first.format("4.00", " at step 10", "5.00", "")


def test_a_mean_over_seeds_says_that_they_were_measured_at_different_steps(written):
    files = [written(f"sam-{seed}", "sam", seed, step, 3.0) for seed, step in enumerate((20, 10))]
    assert sentences(read_networks(files))[0].endswith(" with SAM at steps 10 to 20.")


def test_several_seeds_have_a_mean_and_an_interval(written):
    files = [written(f"sam-{seed}", "sam", seed, 20, top) for seed, top in enumerate((3.0, 3.2, 3.4))]
    networks = read_networks(files)
    assert [n.label for n in networks] == [f"SAM, seed {seed}, step 20" for seed in range(3)]
    first = sentences(networks)[0]
    assert first == "The top Hessian eigenvalue is 3.20 (95 % interval 2.70 to 3.70 over 3 seeds) with SAM."
    assert [label for label, _, _ in picture(networks, "density")] == ["SAM, seed 0"]


def test_runs_of_a_comparison_have_the_names_they_have_there(written, tmp_path):
    files = [written("runs/control/seed-0", "sam", 0, 5, 2.0), written("runs/sam/seed-0", "sam", 0, 5, 3.0)]
    arms = [
        {"name": "sam", "label": "SAM", "runs": ["runs/sam/seed-0"]},
        {"name": "control", "label": "SAM at equal norm", "role": "control", "runs": ["runs/control/seed-0"]},
    ]
    write_json(tmp_path / "comparison.json", {"title": "two", "arms": arms, "seeds": [0]})
    networks = {n.arm: n for n in read_networks(files)}
    assert set(networks) == {"SAM", "SAM at equal norm"}
    assert networks["SAM at equal norm"].style.dash == "dash"


def test_the_table_shows_errors_and_leaves_out_what_nobody_measured(methods):
    columns, rows = measured_rows(read_networks(methods))
    headings = [column.heading for column in columns]
    assert "Frobenius norm" not in headings
    cells = dict(zip(headings, rows[2].cells, strict=True))
    top, trace = cells["Top eigenvalue ± residual"], cells["Trace"]
    assert (top.text, top.range, trace.text, trace.range) == ("8.00", "± 0.0120", "80.0", "± 1.3")
    assert (cells["Products"].text, cells["Products"].range) == ("30", "1.50 s")
    assert [row.first for row in rows] == [True, False, False] * 2


def test_what_went_wrong_stands_before_the_numbers(written, tmp_path):
    good = written("sam", "sam", 0, 0, 1.0, warnings=["not converged after 50 products"])
    bad = content("bad", 1.0, 10, loss=math.nan, gradient_norm=math.nan, reason="the loss is nan, so there is nothing")
    bad["source"] = json.loads(good.read_text())["source"] | {"step": 10}
    for name in PLAN["what"][:3]:
        del bad[name]
    lost = good.with_name("step-00000010.json")
    write_json(lost, bad)
    page = build_measurements([good, lost], tmp_path / "report.html", "flatwise measure sam").read_text()
    assert "SAM, step 10: the loss is nan, so there is nothing." in page
    assert "SAM, step 0: not converged after 50 products." in page


def test_the_page_holds_figures_numbers_and_how_they_were_measured(methods, tmp_path):
    command = "flatwise measure sgd sam --what eigenvalues trace density"
    page = build_measurements(methods, tmp_path / "out" / "report.html", command).read_text()
    figures = json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)[1])
    assert {"density-0", "spectrum-ranks", "spectrum-steps"} <= figures.keys()
    names = {trace.get("name") for trace in figures["density-0"]["data"]}
    assert {"initialisation", "SGD", "SAM"} <= names
    for text in (command, "Curvature of SGD and SAM, digits", "double", "2.14.1", "180"):
        assert text in page
    assert "<script src" not in page  # it opens without a connection


def test_names_of_the_users_own_are_escaped(tmp_path):
    path = tmp_path / "00-net.json"
    write_json(path, content("<b>net</b>", 2.0))
    page = build_measurements([path], tmp_path / "report.html", "flatwise measure").read_text()
    assert "<b>net</b>" not in page
    assert "&lt;b&gt;net" in page


def test_the_terminal_shows_the_same(methods):
    console = Console(width=100, record=True, file=io.StringIO())
    print_measurements(methods, console)
    text = console.export_text()
    assert "The top Hessian eigenvalue is 8.00 with SGD and 3.00 with SAM" in text
    assert "± 0.0120" in text


def test_without_files_there_is_nothing_to_report(tmp_path):
    with pytest.raises(RunError, match="no network has been measured"):
        build_measurements([], tmp_path / "report.html", "flatwise measure")
