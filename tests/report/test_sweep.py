"""The page of a sweep: what is drawn and said is what the runs say."""

import csv
import json

import pytest

from flatwise.report import build, mean_interval, write_results
from flatwise.report.study import read
from flatwise.report.sweep_figures import sweep_figures
from flatwise.report.sweep_sentences import sweep_sentences
from flatwise.runs import Run, write_json

ACCURACY = {
    ("mlp", 0.01): (0.5, 0.6),
    ("mlp", 0.1): (0.7, 0.9),
    ("mlp", 0.2): (0.6, 0.62),
    ("cnn6", 0.1): (0.2, 0.4),
    ("cnn6", 0.01): (0.3, 0.31),
}


def sweep(folder, accuracy, kind="sweep"):
    """A sweep over models and learning rates, one run for each number; None is a run that has not finished."""
    entries = []
    for (model, lr), numbers in accuracy.items():
        name, runs = f"model={model},lr={lr}", []
        for seed, number in enumerate(numbers):
            runs.append(f"runs/{name}/seed-{seed}")
            run = Run.create(folder / runs[-1], {"method": "sam", "model": model, "lr": lr, "seed": seed}, {})
            if number is not None:
                run.finish("finished", {"test_accuracy": number, "top_eigenvalue": 10 * number, "note": "a text"})
        values = {"model": model, "lr": lr}
        entries.append({"name": name, "label": f"{model} {lr}", "role": "method", "runs": runs, "values": values})
    described = {"title": "A sweep", "kind": kind, "arms": entries, "seeds": [0, 1], "swept": ["model", "lr"]}
    write_json(folder / "comparison.json", described | {"command": "flatwise sweep", "baseline": "", "pairs": []})
    return read(folder)


def test_the_figures_have_a_line_for_each_model_with_means_and_intervals_over_the_learning_rate(tmp_path):
    accuracy, top = sweep_figures(sweep(tmp_path, ACCURACY))
    assert accuracy.title == "Test accuracy over lr"
    assert top.title == "Top eigenvalue over lr"
    assert accuracy.layout["xaxis"]["type"] == "log"
    assert accuracy.layout["xaxis"]["tickvals"] == [0.01, 0.1, 0.2]
    mlp, cnn = accuracy.data
    assert [line["name"] for line in accuracy.data] == ["mlp", "cnn6"]  # the most accurate first
    assert mlp["x"] == [0.01, 0.1, 0.2]
    assert mlp["y"] == pytest.approx([55, 80, 61])
    assert cnn["x"] == [0.01, 0.1]
    interval = mean_interval([70.0, 90.0])
    assert mlp["error_y"]["array"][1] == pytest.approx(interval.high - interval.mean)
    assert top.data[0]["y"] == pytest.approx([5.5, 8, 6.1])


def test_what_did_not_finish_is_in_no_line_and_no_sentence(tmp_path):
    study = sweep(tmp_path, {("mlp", 0.1): (0.5, 0.6), ("mlp", 0.2): (None, None), ("mlp", 0.3): (0.4, None)})
    (line,) = sweep_figures(study)[0].data
    assert line["x"] == [0.1, 0.3]
    assert line["error_y"]["array"][1] == 0
    assert "highest mean test accuracy is 55" in sweep_sentences(study)[0]
    assert "the lowest 40.0 % with mlp 0.3 (1 seed)" in sweep_sentences(study)[0]


def test_nothing_is_drawn_where_no_number_is_swept_or_nothing_has_finished(tmp_path):
    assert not sweep_figures(sweep(tmp_path / "models", {("mlp", 0.1): (0.5,), ("cnn6", 0.1): (0.4,)}))
    empty = sweep(tmp_path / "empty", {("mlp", 0.1): (None,), ("mlp", 0.2): (None,)})
    assert not sweep_figures(empty)
    assert not sweep_sentences(empty)
    assert not sweep_figures(sweep(tmp_path / "other", ACCURACY, kind="comparison"))


def test_the_page_shows_both_figures_and_says_which_combination_is_best(tmp_path):
    sweep(tmp_path, ACCURACY)
    page = build(tmp_path).read_text()
    assert 'data-figure="sweep-test_accuracy"' in page
    assert 'data-figure="sweep-top_eigenvalue"' in page
    assert "Of 5 combinations" in page


def test_the_numbers_are_those_of_the_runs_and_their_intervals(tmp_path):
    sweep(tmp_path, ACCURACY)
    rows, numbers = write_results(tmp_path)
    read_back = {
        (row["model"], float(row["lr"]), int(row["seed"])): row for row in csv.DictReader(rows.read_text().splitlines())
    }
    for (model, lr), values in ACCURACY.items():
        assert [float(read_back[model, lr, seed]["test_accuracy"]) for seed in (0, 1)] == list(values)
        assert read_back[model, lr, 0]["note"] == "a text"
    for entry in json.loads(numbers.read_text())["combinations"]:
        expected = mean_interval(ACCURACY[entry["values"]["model"], entry["values"]["lr"]])
        found = entry["means"]["test_accuracy"]
        assert (found["mean"], found["low"], found["high"], found["seeds"]) == (
            expected.mean,
            expected.low,
            expected.high,
            2,
        )
        assert "note" not in entry["means"]
