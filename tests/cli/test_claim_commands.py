"""What the commands say of claims that were tried."""

import re

import pytest
from report.test_claim_page import left

from flatwise.cli.main import main
from flatwise.runs import write_json


def flatwise(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_list_of_claims_has_the_verdicts_of_the_last_run(tmp_path, capsys):
    left(tmp_path, name="stable-sam")
    left(tmp_path, name="tilted-sam", asked=9)
    assert flatwise("list", "claims", "--claims", tmp_path) == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert lines["stable-sam"].startswith("confirmed (small, 3 seeds): Renormalised")
    assert lines["tilted-sam"].startswith("incomplete (small, 3 of 9 seeds): Tilted")
    assert lines["late-phase-sam"].startswith("SAM in the last quarter")


def test_claims_are_listed_without_any_that_were_tried(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flatwise("list", "claims") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["third-order-sde"].endswith("small: about 5 minutes on two cores]")  # 5 seeds of 120 s
    assert lines["stable-sam"].endswith("small: about 1 minute on two cores]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["claims", "--claims", "nowhere"], "there is no folder nowhere"),
        (["data", "--claims", "."], "claims has no effect on data"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_refused(words, said, capsys):
    assert flatwise("list", *words) == 2
    assert said in capsys.readouterr().err


def test_the_pages_of_claims_are_written_again(tmp_path, capsys):
    file = left(tmp_path)
    assert flatwise("report", tmp_path, "--figures", "pdf") == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert file.with_name("report.html").is_file()
    assert file.with_name("example.pdf").is_file()


def test_a_dry_run_counts_all_parts_and_keeps_nothing(tmp_path, capsys):
    words = ["base-optimizers", "--scale", "smoke", "--seeds", 3, "--workers", 2, "--dry-run"]
    assert flatwise("reproduce", *words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "base-optimizers: 6 parts to measure" in said
    assert "on 2 processes; nothing was kept" in said
    assert not (tmp_path / "out").exists()


def test_a_claim_that_cannot_be_tried_does_not_hide_what_the_others_cost(tmp_path, capsys, monkeypatch):
    def fail(config):
        raise ValueError("no network")

    monkeypatch.setattr("flatwise.experiments.forecast._task", fail)
    words = ["base-optimizers", "margin-by-rescaling", "--scale", "smoke", "--seeds", 1, "--dry-run"]
    assert flatwise("reproduce", *words, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "base-optimizers: 2 parts to measure, which fail: no network" in said
    assert re.search(r"margin-by-rescaling: \d parts to measure, .* of work", said)


def test_a_dry_run_says_at_once_which_numbers_are_of_other_settings(tmp_path, capsys):
    for name in ("base-optimizers", "stable-sam"):
        write_json(tmp_path / name / "smoke" / "seed-7" / "cell-0.json", {"settings": {}, "measured": {}})
    words = ["margin-by-rescaling", "base-optimizers", "stable-sam", "--scale", "smoke", "--seeds", 1, "--dry-run"]
    assert flatwise("reproduce", *words, "--out", tmp_path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "base-optimizers/smoke" in said.err.replace("\n", "")
    assert "stable-sam/smoke" in said.err.replace("\n", "")


def test_what_has_no_such_scale_is_said_to_be_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flatwise.cli.reproduce._forecast", lambda trials, workers: print(len(trials), "forecast") or 0)
    assert flatwise("reproduce", "--all", "--scale", "paper", "--dry-run", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "left out, as they have no scale 'paper': reverse-sam-and-egr" in said
    assert "16 forecast" in said


def test_trainings_that_claims_share_are_counted_once(tmp_path, capsys):
    words = ["sam-edge-mlp", "sam-gradient-alignment", "--scale", "smoke", "--seeds", 1, "--dry-run"]
    assert flatwise("reproduce", *words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "sam-edge-mlp: 5 parts to measure" in said
    assert "sam-gradient-alignment: 0 parts to measure" in said
