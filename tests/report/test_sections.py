"""A comparison with sections, and with settings that were tuned."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from flatwise.report import build, print_table, table
from flatwise.report.chosen import choices
from flatwise.report.study import read

TUNING: dict[str, Any] = {
    "folder": "tuning",
    "seeds": [1000, 1001],
    "validation": 0.2,
    "arms": [
        {
            "name": "sam",
            "label": "SAM",
            "chosen": "rho=0.1",
            "grid": [
                {"setting": "rho=0.05", "accuracies": [0.5, 0.6]},
                {"setting": "rho=0.1", "accuracies": [0.7, 0.61]},
                {"setting": "rho=9.0", "accuracies": [None, 0.9]},
            ],
        }
    ],
}


def with_sections(comparison: Callable[..., Path]) -> Path:
    """Two sections; SAM's runs are the same in both."""
    folder = comparison(
        ["sgd", "sam"], seeds=3, heading="At equal steps, 640 each", sections=["evaluations"], tuning=TUNING
    )
    plan = json.loads((folder / "comparison.json").read_text())
    plan |= {"heading": "At equal gradient evaluations, 1,280 each", "sections": [], "tuning": None}
    for one in plan["arms"]:
        one["runs"] = [f"../{path}" for path in one["runs"]]
    (folder / "evaluations").mkdir()
    (folder / "evaluations/comparison.json").write_text(json.dumps(plan))
    return folder


def test_every_section_has_its_sentences_and_its_numbers(comparison: Callable[..., Path]) -> None:
    folder = with_sections(comparison)
    study = read(folder)
    assert [part.heading for part in study.parts] == [
        "At equal steps, 640 each",
        "At equal gradient evaluations, 1,280 each",
    ]
    assert study.sections[0].arm("sam").by_seed("test_accuracy") == study.arm("sam").by_seed("test_accuracy")
    sentences = table(folder).summary
    assert sentences[0].startswith("At equal steps, 640 each: over 3 seeds, test accuracy is higher with SAM")
    assert sentences[2].startswith("At equal gradient evaluations, 1,280 each: over 3 seeds")
    assert not any("--equal evaluations" in sentence for sentence in sentences)  # they are there


def test_the_page_shows_both_sections_and_what_was_tuned(comparison: Callable[..., Path]) -> None:
    page = build(with_sections(comparison)).read_text()
    for text in ("At equal steps, 640 each", "At equal gradient evaluations, 1,280 each", "What was tuned"):
        assert f"<h2>{text}" in page
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    drawn = [part.split('"')[0] for part in page.split('data-figure="')[1:]]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) == figures.keys()
    assert "<b>65.5</b><span>rho=0.1</span>" in page
    assert "p, corrected" in page


def test_the_terminal_shows_both_sections(comparison: Callable[..., Path]) -> None:
    out = StringIO()
    print_table(with_sections(comparison), Console(file=out, width=150))
    assert (
        out.getvalue().count("At equal gradient evaluations, 1,280 each") == 2
    )  # over its tables, and in the sentences
    assert out.getvalue().count("Top eigenvalue, paired differences") == 2


def test_a_setting_that_did_not_finish_everywhere_has_no_accuracy(comparison: Callable[..., Path]) -> None:
    (found,) = choices(read(with_sections(comparison)))
    assert (found.columns, found.heading) == (3, "At equal steps, 640 each")
    assert [(one.accuracy, one.chosen) for one in found.rows[0].tried] == [
        ("55.0", False),
        ("65.5", True),
        ("–", False),
    ]
    assert "20 % of the training samples" in found.how
    assert "2 seeds (1000, 1001)" in found.how


def test_what_is_missing_in_a_section_is_said_once(comparison: Callable[..., Path]) -> None:
    folder = with_sections(comparison)
    (folder / "runs/sam/seed-1/done.json").unlink()
    notes = table(folder).notes
    assert len(notes) == len(set(notes)) == 2
    assert notes[0].startswith("At equal steps, 640 each: SAM, seed 1, is unfinished")
