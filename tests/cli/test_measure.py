import json
import shutil
import subprocess
import sys

import pytest
from measurements.runs import small_run

from flatwise.cli.main import main

WHAT = ["--what", "eigenvalues", "trace", "density", "landscape"]
SMALL = [*WHAT, "--probes", "2", "--steps", "8", "--points", "5", "--workers", "1"]
MINE = """
import torch
from torch import nn

def make():
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    return nn.Linear(4, 3), loss, [(torch.randn(12, 4), torch.randint(3, (12,)))]
"""


def flatwise(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "sam").path


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "sam")
    return "sam"


def test_a_run_and_a_function_of_ones_own_come_into_one_report(run, tmp_path, capsys):
    (tmp_path / "ours_to_measure.py").write_text(MINE)
    assert flatwise("measure", run, "ours_to_measure:make", "--checkpoints", "first", "last", *SMALL) == 2
    assert "checkpoint first has no effect" in capsys.readouterr().err

    assert flatwise("measure", run, "ours_to_measure:make", *SMALL, "--out", "here") == 0
    printed = capsys.readouterr().out
    assert "report: here/report.html" in printed
    assert "The top Hessian eigenvalue is" in printed
    page = (tmp_path / "here" / "report.html").read_text()
    assert all(text in page for text in ("ours_to_measure:make", "SAM", "Spectral density", "Loss along", "--probes 2"))
    files = sorted((tmp_path / "sam" / "measurements").rglob("step-*.json"))
    assert [file.stem for file in files] == [f"step-{step:08d}" for step in (0, 4, 7, 8)]
    assert json.loads(files[-1].read_text())["environment"]["command"].startswith("flatwise measure sam")

    before = files[0].stat().st_mtime_ns
    assert flatwise("measure", run, *SMALL, "--checkpoints", "0") == 0
    assert files[0].stat().st_mtime_ns == before
    assert flatwise("measure", run, *SMALL, "--checkpoints", "0", "--again") == 0
    assert files[0].stat().st_mtime_ns > before

    assert flatwise("report", run) == 0  # the page about the run leads to that about its curvature
    assert 'href="measurements/report.html"' in (tmp_path / "sam" / "report.html").read_text()


def test_a_dry_run_says_what_it_takes_and_measures_nothing(run, tmp_path, capsys):
    assert flatwise("measure", run, "--dry-run", *SMALL, "--trace-samples", "12") == 0
    printed = capsys.readouterr().out
    assert "60 samples, 235 parameters" in printed
    assert "trace 12, density 16" in printed
    assert "4 of 4 networks to measure" in printed
    assert "1 process; nothing was measured" in printed
    assert not (tmp_path / "sam" / "measurements").exists()
    assert not (tmp_path / "measurements").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing to measure: give a run folder"),
        (["sma"], "there is no run folder sma; did you mean sam?"),
        (["."], "holds some: sam"),
        (["sam", "--checkpoints", "lats"], "did you mean 'last'"),
        (["sam", "--checkpoints", "3"], "there are 0, 4, 7, 8"),
        (["sam", "--top", "236"], "has only 235 parameters"),
        (["sam", "--samples", "61"], "has only 60"),
        (["sam", "--what", "trace", "--top", "2"], "top 2 has no effect"),
        (["sam", "--max-memory", "much"], "such as 2GB"),
        (["sam", "--max-memory", "10"], "one sample takes"),
        (["sam", "--workers", "0"], "number of processes must be at least 1"),
        (["sam", "--data-root", "here"], "data root here has no effect"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(run, tmp_path, capsys, words, sentence):
    assert flatwise("measure", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sam"]
    assert not (tmp_path / "sam" / "measurements").exists()


def test_a_comparison_is_measured_run_by_run(run, tmp_path, capsys):
    arms = [{"name": "sam", "label": "SAM", "runs": ["sam", "sam-to-come"]}]
    (tmp_path / "comparison.json").write_text(json.dumps({"arms": arms}))
    assert flatwise("measure", tmp_path, "--dry-run") == 0
    assert "4 of 4 networks" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "sam")
    assert flatwise("measure", tmp_path) == 2
    assert "no run of the comparison" in capsys.readouterr().err


def test_help_needs_nothing_heavy():
    code = """
import sys
from flatwise.cli.main import main
try:
    main(["measure", "--help"])
except SystemExit as end:
    assert end.code in (0, None)
assert not {"torch", "numpy", "plotly"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in ("--checkpoints", "--what", "--dry-run", "--max-memory", "--landscape", "--top", "--lowest", "--out"):
        assert option in done.stdout
