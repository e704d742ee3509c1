"""The pages of claims: what they say of claims that are judged, unfinished or failed, and what can be taken from them."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from flatwise.report import build_claims, last_verdicts, tell, verdict_lines
from flatwise.runs import RunError, write_json

LINE = {
    "label": "SAM <i>",
    "x": [0, 1, 2],
    "y": [3.0, float("nan"), 1.0],
    "low": [2.0, 2.0, 0.5],
    "high": [4.0, 3.0, 1.5],
}
PANEL = {"title": "Loss", "x": "step", "y": "loss", "log": "y", "lines": [LINE], "levels": {"2/lr": 2.0}}
HEAT = {
    "title": "Accuracy",
    "x": "rho",
    "y": "alpha",
    "columns": [0.05, 0.1],
    "rows": [0.0, 0.2, 0.5],
    "values": [[1.0, 2.0], [3.0, float("nan")], [0.5, 1.5]],
    "color": "points",
    "middle": 1.0,
}
CRITERION = {
    "name": "number, one",
    "meaning": "It.",
    "values": [1.0, 1.1, 1.2],
    "least": 0,
    "most": None,
    "decisive": True,
}
CLAIM = {
    "name": "example",
    "statement": "One is <b>more</b> than none.",
    "source": "ours",
    "protocol": "As it stands.",
    "scale": "small",
    "preset": {"shared": {"lr": 0.1}},
    "seeds": [0, 1, 2],
    "asked": 3,
    "failures": {},
    "command": "flatwise reproduce example",
    "environments": [{"python": "3.11", "cores": 2}, {"python": "3.12", "cores": 2}],
    "criteria": [
        {"name": "number, one", "meaning": "It.", "values": [1.0, 1.1, 1.2], "least": 0, "most": None, "decisive": True}
    ],
    "panels": [PANEL, HEAT],
    "notes": ["Read this."],
}


def left(folder, **changes):
    found = CLAIM | changes
    file = folder / found["name"] / found["scale"] / "claim.json"
    write_json(file, found)
    return file


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = {}

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "a" and "download" in values:
            self.found[values["download"]] = unquote(values["href"].split(",", 1)[1])


def test_the_numbers_can_be_downloaded_as_they_are(tmp_path):
    file = left(tmp_path)
    build_claims(tmp_path)
    links = Links()
    links.feed(file.with_name("report.html").read_text())
    assert list(csv.reader(io.StringIO(links.found["example.csv"]))) == [
        ["seed", "number, one"],
        *([str(seed), str(value)] for seed, value in enumerate((1.0, 1.1, 1.2))),
    ]
    assert json.loads(links.found["example.json"]) == json.loads(file.read_text())


def test_a_number_of_some_seeds_stands_in_their_rows(tmp_path):
    told = tell(
        left(tmp_path, criteria=[CRITERION | {"values": [5.0, 7.0], "seeds": [0, 2]}, CRITERION | {"name": "two"}])
    )
    assert list(csv.reader(io.StringIO(told.table))) == [
        ["seed", "number, one", "two"],
        ["0", "5.0", "1.0"],
        ["1", "", "1.1"],
        ["2", "7.0", "1.2"],
    ]
    build_claims(tmp_path)
    rows = re.findall(r'<th scope="row">(\d)</th>(.*?)</tr>', told.page.read_text())
    assert rows == [
        ("0", "<td>5.00</td><td>1.00</td>"),
        ("1", "<td></td><td>1.10</td>"),
        ("2", "<td>7.00</td><td>1.20</td>"),
    ]


def test_what_decides_stands_before_the_figures_and_what_does_not_behind_them(tmp_path):
    beside = CRITERION | {"name": "only beside", "decisive": False}
    build_claims(left(tmp_path, criteria=[beside, CRITERION]).parents[2])
    page = (tmp_path / "example" / "small" / "report.html").read_text()
    places = [
        page.index(text)
        for text in ('id="numbers"', ">number, one<", 'id="figures-section"', 'id="beside"', ">only beside<")
    ]
    assert places == sorted(places)
    assert "wanted: at least 0" in page[places[-1] :]


def test_markup_in_a_claim_stays_text(tmp_path):
    file = left(tmp_path)
    build_claims(tmp_path)
    assert "One is &lt;b&gt;more&lt;/b&gt; than none." in file.with_name("report.html").read_text()


def test_machines_that_differ_are_told_apart(tmp_path):
    assert tell(left(tmp_path)).machine == [("python", "3.11 | 3.12"), ("cores", "2")]


@pytest.mark.parametrize(
    ("changes", "verdict", "seeds"),
    [
        ({}, "confirmed", "3"),
        ({"asked": 5}, "incomplete", "3 of 5"),
        ({"seeds": [], "criteria": [], "panels": []}, "incomplete", "0 of 3"),
        ({"failures": {"cell 0, seed 4": "out of memory"}, "asked": 5}, "failed to run", "3 of 5"),
        ({"scale": "smoke"}, "no verdict", "3"),
    ],
)
def test_what_is_not_whole_has_no_verdict(tmp_path, changes, verdict, seeds):
    file = left(tmp_path, **changes)
    told = tell(file)
    assert (told.verdict, told.seeds) == (verdict, seeds)
    index = build_claims(tmp_path).read_text()
    assert f"<b>{verdict}</b>" in index
    assert f"example: {verdict}" in file.with_name("report.html").read_text()
    for reason in changes.get("failures", {}).values():
        assert reason in index
        assert reason in file.with_name("report.html").read_text()


def test_each_arm_and_each_cell_has_a_row_of_settings(tmp_path):
    arms = {"SAM": {"method": "sam", "rho": 0.1}, "SGD": {"method": "sgd"}}
    preset = {
        "shared": {"lr": 0.5, "probe_every": 3},
        "arms": arms,
        "cells": [{"data": "a"}, {"widths": [8, 9]}],
        "steps": 7,
    }
    assert tell(left(tmp_path, preset=preset)).facts == [
        ("lr", "0.5"),
        ("probe every", "3"),
        ("arms: SAM", "method sam, rho 0.1"),
        ("arms: SGD", "method sgd"),
        ("cells: 0", "data a"),
        ("cells: 1", "widths 8, 9"),
        ("steps", "7"),
    ]


def test_the_last_run_of_each_claim_is_known(tmp_path):
    left(tmp_path)
    left(tmp_path, name="other", asked=4)
    left(tmp_path, name="third", scale="smoke")
    left(tmp_path, scale="smoke")  # which decides nothing, so that it hides no verdict
    assert last_verdicts(tmp_path) == {
        "example": "confirmed (small, 3 seeds)",
        "third": "no verdict (smoke, 3 seeds)",
        "other": "incomplete (small, 3 of 4 seeds)",
    }


def test_the_terminal_is_told_the_verdict_and_the_deciding_numbers(tmp_path):
    head, number = verdict_lines([left(tmp_path)])
    assert head == "example (small, 3 seeds): confirmed"
    assert re.fullmatch(r"  number, one 1\.10 \(0\.\d+ to 1\.\d+; wanted: at least 0\)", number)


def test_a_folder_without_claims_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no claim"):
        build_claims(tmp_path)


def test_curves_have_bands_levels_and_gaps(tmp_path):
    loss, _ = tell(left(tmp_path)).figures
    low, high, mean, level = loss.data
    assert (low["y"], high["y"], high["fill"]) == (LINE["low"], LINE["high"], "tonexty")
    assert mean["y"] == [3.0, None, 1.0]
    assert (level["x"], level["y"], level["name"]) == ([0, 2], [2.0, 2.0], "2/lr")
    assert (loss.layout["xaxis"]["type"], loss.layout["yaxis"]["type"]) == ("linear", "log")


def test_points_have_bars_and_dashes_are_dashed(tmp_path):
    lines = [LINE | {"style": "points"}, LINE | {"style": "dashed", "low": [], "high": []}]
    bars, points, dashed = tell(left(tmp_path, panels=[PANEL | {"lines": lines, "levels": {}}])).figures[0].data
    assert bars["y"] == [2.0, 4.0, None, 2.0, 3.0, None, 0.5, 1.5, None]
    assert points["mode"] == "markers"
    assert dashed["line"]["dash"] == "dash"


def test_a_heat_map_keeps_rows_columns_and_empty_fields(tmp_path):
    _, heat = tell(left(tmp_path)).figures
    (fields,) = heat.data
    assert (fields["x"], fields["y"]) == (["0.05", "0.1"], ["0", "0.2", "0.5"])
    assert fields["z"] == [[1.0, 2.0], [3.0, None], [0.5, 1.5]]
    assert fields["zmid"] == 1.0
