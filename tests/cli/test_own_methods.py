"""A method in a file of one's own, by name on the command line."""

import sys
from itertools import count

import pytest

from flatwise import methods
from flatwise.cli.main import main
from flatwise.runs import Run

_numbers = count()
SMALL = ["--subset", "100", "--widths", "8", "--steps", "4", "--probe-every", "2"]
CODE = """
from dataclasses import dataclass
from flatwise.methods import SAM, At, Dialogue

@dataclass(frozen=True)
class SecondLook(Dialogue):
    rho: float = 0.05
    way: float = 0.5

    @property
    def cost(self):
        return 3.0

    def passes(self, state):
        here = yield At.weights()
        halfway = yield At.along(here.release(), self.way * self.rho)
        there = yield At.along(halfway.release(), self.rho)
        return there.release()

class Undecorated(Dialogue):
    def passes(self, state):
        return (yield At.weights()).release()

@dataclass(frozen=True)
class WithoutDefault(Undecorated):
    rho: float

made, tuned = SAM(), 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of the user's in the current folder, `looks_N`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"looks_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


def flatwise(*words):
    """Run a command in this process, and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def test_a_method_of_ones_own_is_compared_by_worker_processes_and_reported(mine, tmp_path, capsys):
    own = f"{mine}:SecondLook"
    words = ["compare", "--methods", "sgd", own, "--seeds", "2", *SMALL, "--hyper", f"{own}.way=0.25"]
    assert flatwise(*words, "--workers", "1", "--out", "out") == 0
    assert own in capsys.readouterr().out
    runs = [Run.open(tmp_path / f"out/runs/{mine}.SecondLook/seed-{seed}") for seed in (0, 1)]
    for run in runs:
        assert (run.config["method"], run.config["rho"], run.config["hyper"]) == (own, 0.05, ["way=0.25"])
        assert run.summary["evaluations"] == 12
    assert own in (tmp_path / "out/report.html").read_text()


def test_its_dry_run_counts_what_it_declares(mine, capsys, tmp_path):
    words = ["compare", "--methods", f"{mine}:SecondLook", "sam", "--equal", "evaluations", "--evaluations", "12"]
    assert flatwise(*words, *SMALL[:4], "--tune", "rho=x1,x2", "--seeds", "1", "--dry-run") == 0
    assert "in sum: 10 runs, about 120 evaluations" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_it_is_swept(mine, tmp_path, capsys):
    words = ["--set", f"method=sgd,{mine}:SecondLook", f"{mine}:SecondLook.way=0.25,0.5", "--seeds", "1"]
    assert flatwise("sweep", *words, *SMALL, "--workers", "1", "--out", "out") == 0
    runs = [Run.open(path.parent) for path in (tmp_path / "out/runs").glob("*/seed-0/config.json")]
    assert sorted(tuple(run.config["hyper"]) for run in runs) == [(), ("way=0.25",), ("way=0.5",)]
    assert f"{mine}:SecondLook" in (tmp_path / "out/report.html").read_text()


def test_it_trains_and_is_resumed(mine, tmp_path, capsys):
    assert flatwise("train", "--method", f"{mine}:SecondLook", *SMALL, "--rho", "0.1") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith(f"{mine}.SecondLook-digits-mlp-")
    assert flatwise("train", "--resume", str(folder)) == 0
    assert Run.open(folder).config["rho"] == 0.1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere:Look", "cannot import 'nowhere' for 'nowhere:Look'"),
        ("MINE:SecondLok", "has no 'SecondLok'; did you mean 'SecondLook'"),
        ("MINE:made", "must be a class derived from flatwise.methods.Dialogue, got SAM"),
        ("MINE:tuned", "must be a class derived from flatwise.methods.Dialogue, got 3"),
        ("MINE:Undecorated", "must be a dataclass"),
        ("MINE:WithoutDefault", "rho of 'MINE:WithoutDefault' needs a default"),
        ("second-look", "or module:Class of your own"),
    ],
)
def test_what_is_no_method_is_refused_at_once(mine, name, sentence, capsys, tmp_path):
    assert flatwise("train", "--method", name.replace("MINE", mine), *SMALL, "--out", "out") == 2
    assert sentence.replace("MINE", mine) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hyperparameter_that_it_does_not_have_is_refused(mine, capsys):
    assert flatwise("train", "--method", f"{mine}:SecondLook", *SMALL, "--hyper", "wey=1") == 2
    assert "did you mean 'way'" in capsys.readouterr().err


def test_the_library_knows_it_by_the_same_name(mine):
    assert methods.settings(f"{mine}:SecondLook") == {"rho": 0.05, "way": 0.5}
    assert methods.by_name(f"{mine}:SecondLook", way=0.25).way == 0.25
