import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flatwise.report import print_table, table
from flatwise.report.provenance import provenance
from flatwise.report.study import read
from flatwise.runs import Run, RunError


def test_means_intervals_and_seeds(demo: Path) -> None:
    found = table(demo)
    assert [row.label for row in found.rows] == ["SGD", "SAM", "Eigen-SAM", "SAM at equal norm", "Reverse-SAM"]
    assert found.rows[3].role == "control"
    assert [row.seeds for row in found.rows] == ["5 seeds"] * 5
    assert found.headings[:2] == ["Test accuracy (%)", "Top eigenvalue"]
    sgd = dict(zip(found.headings, found.rows[0].cells))
    assert sgd["Test accuracy (%)"].text.startswith("9")
    assert " to " in sgd["Test accuracy (%)"].range
    assert sgd["Alignment of the displacement with\u00a0v₁"].text == "–"
    assert (sgd["Gradient evaluations"].text, sgd["Gradient evaluations"].range) == ("640", "")


def test_differences_of_the_named_pairs(demo: Path) -> None:
    (accuracy, pairs), (eigenvalue, _) = table(demo).differences
    assert (accuracy, eigenvalue) == ("Test accuracy", "Top eigenvalue")
    assert (pairs[0].first, pairs[0].second, pairs[0].verdict) == ("SAM", "SGD", "higher")
    assert pairs[0].cell.text.startswith("+")
    assert pairs[0].cell.text.endswith(" points")
    assert pairs[3].verdict == "lower"


def test_edges_by_seed(edge: Callable[..., Path]) -> None:
    found = table(edge())
    assert "Test accuracy (%)" not in found.headings
    assert not found.differences
    rows = found.edges
    assert [row.seed for row in rows] == ["0", "1", "2"] * 3
    assert [row.edge for row in rows[::3]] == ["GD edge 2/lr", "SAM edge", "Eigen-SAM edge (derived)"]
    assert 0.98 < float(rows[3].to_edge) < 1.04
    assert float(rows[3].to_gd_edge) < 0.2
    assert rows[0].probes == 16


def test_one_seed_has_no_interval_and_says_so(comparison: Callable[..., Path]) -> None:
    found = table(comparison(["sgd", "sam"], seeds=1))
    assert [row.seeds for row in found.rows] == ["1 seed, no interval"] * 2
    assert not any(cell.range for row in found.rows for cell in row.cells)
    assert found.differences[0][1][0].verdict == "one seed, no interval"


def test_runs_that_did_not_arrive_are_left_out_next_to_the_number(
    comparison: Callable[..., Path], run_at: Callable[..., Run]
) -> None:
    folder = comparison(["sgd", "sam"], seeds=4)
    for seed in (1, 2, 3):
        shutil.rmtree(folder / f"runs/sam/seed-{seed}")
    run_at(folder / "runs/sam/seed-1", "sam", 1, status="diverged", until=9)
    run_at(folder / "runs/sam/seed-2", "sam", 2, status="unfinished", until=20)
    found = table(folder)
    assert found.rows[1].seeds == "1 of 4 seeds finished"
    assert found.rows[1].cells[0].note == "1 of 4 seeds"
    assert found.notes == [
        "SAM, seed 1, diverged at step 128 (the loss became nan): it is left out of every mean.",
        "SAM, seed 2, is unfinished at step 320: it is left out of every mean.",
        "SAM, seed 3, has not been started: it is left out of every mean.",
    ]


def test_a_run_that_cannot_be_opened_does_not_hide_the_others(comparison: Callable[..., Path]) -> None:
    folder = comparison(["sgd", "sam"], seeds=2)
    (folder / "runs/sam/seed-0/environment.json").unlink()
    found = table(folder)
    assert found.rows[1].seeds == "1 of 2 seeds finished"
    assert "cannot be read" in found.notes[0]
    assert "environment.json" in found.notes[0]


def test_a_truncated_line_is_reported_and_the_rest_is_read(comparison: Callable[..., Path]) -> None:
    folder = comparison(["sgd", "sam"], seeds=2)
    metrics = folder / "runs/sam/seed-1/metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    found = table(folder)
    assert found.rows[1].seeds == "2 seeds"
    assert any("metrics.jsonl" in note for note in found.notes)


def test_a_setting_that_depends_on_the_seed_is_shown_in_words(
    comparison: Callable[..., Path], run_at: Callable[..., Run]
) -> None:
    folder = comparison(["sgd"], seeds=2)
    plan = json.loads((folder / "comparison.json").read_text())
    runs = [run_at(folder / f"runs/control/seed-{seed}", "sam", seed, rho=0.1 + seed / 100).path for seed in range(2)]
    control = {"name": "control", "label": "Control", "role": "control", "config": {"rho": "as found", "lr": 0.05}}
    plan["arms"].append(control | {"runs": [str(path.relative_to(folder)) for path in runs]})
    (folder / "comparison.json").write_text(json.dumps(plan))
    found = provenance(read(folder)).settings
    assert dict(found.rows)["Control"] == ["sam", "as found"]
    assert dict(found.rows)["SGD"] == ["sgd", "0"]
    assert ("lr", "0.05") in found.shared


def test_no_pairs_named_means_each_against_the_baseline(comparison: Callable[..., Path]) -> None:
    pairs = table(comparison(["sgd", "sam", "eigen-sam"], seeds=2)).differences[0][1]
    assert [(row.first, row.second) for row in pairs] == [("SAM", "SGD"), ("Eigen-SAM", "SGD")]


@pytest.mark.parametrize(("name", "text"), [("comparison.json", "{"), ("comparison.json", "[]"), ("notes.txt", "")])
def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=r"damaged|nothing to report"):
        table(tmp_path)


def printed(folder: Path, width: int) -> str:
    out = StringIO()
    print_table(folder, Console(file=out, width=width))
    return out.getvalue()


def test_printed_for_the_terminal(demo: Path) -> None:
    text = printed(demo, 150)
    assert "SGD, SAM and Eigen-SAM on digits" in text
    assert "Eigen-SAM edge (derived)" in text
    assert "no difference shown" in text
    assert text.count("Over 5 seeds") == 2


def test_a_narrow_terminal_gets_whole_numbers(demo: Path) -> None:
    found = table(demo)
    text = printed(demo, 80)
    assert all(row.cells[0].range in text and row.label in text for row in found.rows)
    assert "…" not in text


def test_labels_are_no_markup(comparison: Callable[..., Path]) -> None:
    folder = comparison(["sgd", "sam"], seeds=2, title="a [bold]title[/bold]")
    assert "a [bold]title[/bold]" in printed(folder, 120)
