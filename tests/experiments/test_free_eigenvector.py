"""The experiment behind the page on the free eigenvector, on a network that takes no time."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flatwise.experiments import free_eigenvector as experiment
from flatwise.experiments.free_eigenvector_figure import draw
from flatwise.experiments.free_eigenvector_networks import CONTEXT, PIECES, PROBLEMS, Problem, transformer
from flatwise.experiments.free_eigenvector_table import table, verdict


def tiny(seed, layers=()):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(96, 4, generator=generator), torch.randint(3, (96,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), *layers, nn.Tanh(), nn.Linear(6, 3))
    return Problem(model, x[:64], y[:64], x[64:], y[64:], batch=16, epochs=4, lr=0.05, rho=0.1, measured=64)


@pytest.fixture
def out(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setitem(PROBLEMS, "tiny", tiny)
    yield tmp_path
    torch.set_num_threads(threads)


def lines(out):
    return (out / "runs.jsonl").read_text(encoding="utf-8").splitlines()


def test_every_arm_is_run_once_and_what_is_there_is_not_made_again(out):
    experiment.main(out, networks=("tiny",), seeds=1)
    first = lines(out)
    runs = {run["arm"]: run for run in map(json.loads, first)}
    assert list(runs) == experiment.arms_of("tiny") == [arm for arm in experiment.ARMS if arm != "first-form"]
    (out / "runs.jsonl").write_text("\n".join(first[:3]) + "\n", encoding="utf-8")
    experiment.main(out, networks=("tiny",), seeds=1)
    again = {run["arm"]: run for run in map(json.loads, lines(out))}
    timeless = [{k: v for k, v in run.items() if k != "seconds"} for run in again.values()]
    assert lines(out)[:3] == first[:3]
    assert timeless == [{k: v for k, v in run.items() if k != "seconds"} for run in runs.values()]


def test_what_the_arms_cost_and_how_far_they_go(out):
    experiment.main(out, networks=("tiny",), seeds=1)
    runs = {run["arm"]: run for run in map(json.loads, lines(out))}
    steps = PROBLEMS["tiny"](0).steps
    assert runs["sam"]["evaluations"] == 2.0
    assert runs["free"]["evaluations"] == 2.0 + 1 / steps
    assert runs["every-1"]["evaluations"] == 3.0 + 1 / steps
    assert runs["sam"]["displacement_norm"] == pytest.approx(0.1)
    assert runs["sam-equal-norm"]["displacement_norm"] == pytest.approx(runs["every-10"]["displacement_norm"])
    assert runs["sam"]["cosines"] == []
    assert all(0 <= c <= 1.0001 for c in runs["free"]["cosines"])
    assert len(runs["free"]["cosines"]) == 4
    assert "tiny" in (out / "table.md").read_text(encoding="utf-8")


def test_with_batchnorm_the_first_form_is_another_one_and_training_mode_is_measured(monkeypatch):
    monkeypatch.setitem(PROBLEMS, "batch", lambda seed: tiny(seed, [nn.BatchNorm1d(6)]))
    first, free = (experiment.Trial("batch", arm, 0).run() for arm in ("first-form", "free"))
    assert (first.evaluations, free.evaluations) == (2.0, 2.0 + 4 / 16)
    assert first.cosines != free.cosines
    assert free.training_mode_cosine is not None
    assert free.training_mode_eigenvalue != free.top_eigenvalue


def test_a_dry_run_says_what_it_would_do_and_does_nothing(out, capsys):
    experiment.main(out / "none", networks=("tiny",), dry_run=True)
    assert "tiny: 30 runs of 16 steps" in capsys.readouterr().out
    assert not (out / "none").exists()


def run(arm, seed, cosines, evaluations=2.0):
    values = {"cosines": cosines, "batch_cosines": cosines, "training_mode_cosine": None, "top_eigenvalue": 3.0}
    others = {"training_mode_eigenvalue": None, "test_accuracy": 0.5, "evaluations": evaluations}
    return {"network": "net", "arm": arm, "seed": seed} | values | others


@pytest.mark.parametrize(
    ("ours", "evaluations", "expected"),
    [(0.86, 2.2, "works"), (0.84, 2.2, "does not work"), (0.95, 2.3, "does not work")],
)
def test_the_verdict_is_by_the_rule_of_the_protocol(ours, evaluations, expected):
    runs = [run("every-10", s, [0.9, 0.9]) for s in range(2)] + [
        run("free", s, [ours, ours], evaluations) for s in range(2)
    ]
    assert verdict("net", runs).startswith(f"net: {expected} ")


def test_differences_in_the_table_are_paired_over_seeds():
    """Seeds differ by 0.5, the arms by 0.1 in each: the interval has no width."""
    runs = [run("every-10", s, [0.2 + 0.5 * s]) for s in range(2)] + [run("free", s, [0.3 + 0.5 * s]) for s in range(2)]
    assert "| +0.10 ± 0.00 |" in table(runs)


def test_the_transformer_reads_the_text_that_the_tasks_read(tmp_path, monkeypatch):
    """Which is downloaded where there is none."""
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setattr("flatwise.tasks.text.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("flatwise.tasks.text.places", lambda: [tmp_path])
    monkeypatch.setattr(
        "flatwise.tasks.text._fetch", lambda root: (Path(root) / "tinyshakespeare.txt").write_text("to be\n" * 20_000)
    )
    problem = transformer(0)
    assert problem.inputs.shape == (PIECES, CONTEXT)
    assert problem.inputs.unique().tolist() == list(range(6))


def test_the_figure_has_a_panel_per_network_and_shows_every_arm(tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    runs = [
        run(arm, seed, [0.1 * seed + 0.5]) | {"network": "digits"} for arm in ("every-10", "free") for seed in (0, 1)
    ]
    draw(runs, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert [word in text for word in ("<!-- digits -->", "<!-- free -->", "<!-- every -->", "<!-- cnn -->")] == [
        1,
        1,
        1,
        0,
    ]
