import json
from dataclasses import replace

import pytest
import torch
from training.test_resume import CONFIG, Killed, assert_same, killed_at

from flatwise.runs import Run
from flatwise.training import train
from flatwise.training.checkpoints import load, step_of
from flatwise.training.loop import load_task
from flatwise.training.setup import build_network, resolved

KEEPING = replace(CONFIG, keep_every=7, checkpoint_every=5)


def steps(run):
    return [step_of(path) for path in run.checkpoints()]


def test_the_initial_weights_every_so_many_steps_and_the_last_are_kept(tmp_path):
    run = train(KEEPING, tmp_path / "run")
    assert steps(run) == [0, 7, 14, 21, 24]
    initial = build_network(resolved(KEEPING), load_task(KEEPING)).state_dict()
    kept = load(run.checkpoints()[0])["model"]
    assert all(torch.equal(kept[name], initial[name]) for name in initial)


@pytest.mark.parametrize("step", [3, 8, 16])
def test_a_run_that_keeps_checkpoints_resumes_bitwise(tmp_path, step):
    with pytest.raises(Killed):
        train(KEEPING, tmp_path / "killed", progress=killed_at(step))
    resumed = train(KEEPING, tmp_path / "killed")
    assert_same(resumed, train(KEEPING, tmp_path / "whole"))
    assert steps(resumed) == [0, 7, 14, 21, 24]


def test_keeping_checkpoints_changes_nothing_about_the_training(tmp_path):
    assert_same(train(KEEPING, tmp_path / "keeping"), train(CONFIG, tmp_path / "plain"))


def test_the_run_folder_says_how_its_probes_were_measured(tmp_path):
    run = train(replace(CONFIG, probe_samples=50), tmp_path / "run")
    how = json.loads((run.path / "probes.json").read_text())
    assert (how["step"], how["samples"], how["dtype"], how["mode"], how["tol"]) == (0, 50, "float32", "eval", 0.01)
    assert how["drawn"] == {"data": "digits", "split": "train", "seed": 0}
    probes = [record for record in run.metrics() if record["kind"] == "probe"]
    assert all("residual" in probe and "changed" not in probe for probe in probes)


def test_what_changes_between_probes_is_in_the_metrics(tmp_path):
    with pytest.raises(Killed):
        train(CONFIG, tmp_path / "run", progress=killed_at(8))
    path = tmp_path / "run" / "probes.json"
    path.write_text(path.read_text().replace(torch.__version__, "2.0.0"))
    train(CONFIG, tmp_path / "run")
    probes = [record for record in Run.open(tmp_path / "run").metrics() if record["kind"] == "probe"]
    assert [probe.get("changed") for probe in probes[:2]] == [None, None]
    assert probes[-1]["changed"] == {"torch": torch.__version__}
