import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from training.mirrored import scalars

from flatwise.experiments import Arm, Comparison, carry_out
from flatwise.experiments.arms import arms_of, pairs_of
from flatwise.runs import Run, RunError
from flatwise.training import Settings, TrainConfig

SETTINGS = Settings(subset=100, widths=(8,), steps=10, probe_every=5, checkpoint_every=2, rho=0.1, alpha=1.0, every=5)


def comparison(arms, seeds=(0, 1)):
    return Comparison("small", arms, seeds, arms[0].name, pairs_of(arms, arms[0].name), "flatwise compare")


def test_a_comparison_makes_all_runs_and_runs_again_from_what_is_there(tmp_path):
    study = comparison(arms_of(["sgd", "eigen-sam"], SETTINGS))
    assert carry_out({tmp_path: study}, workers=2) == {}

    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [arm["name"] for arm in written["arms"]] == ["sgd", "eigen-sam", "sam-equal-norm"]
    assert written["pairs"][0] == ["eigen-sam", "sam-equal-norm"]
    assert [arm["role"] for arm in written["arms"]] == ["method", "method", "control"]
    for arm in written["arms"]:
        for seed, path in enumerate(arm["runs"]):
            run = Run.open(tmp_path / path)
            assert (run.status, run.config["seed"]) == ("finished", seed)

    for seed in (0, 1):  # the control runs at the norm that was measured, not at rho
        measured = Run.open(tmp_path / f"runs/eigen-sam/seed-{seed}").summary["mean_displacement_norm"]
        control = Run.open(tmp_path / f"runs/sam-equal-norm/seed-{seed}")
        assert measured > 0.1
        assert control.config["rho"] == measured
        assert control.summary["mean_displacement_norm"] == pytest.approx(measured, rel=1e-5)

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/done.json")}
    assert carry_out({tmp_path: study}, workers=2) == {}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    with pytest.raises(RunError, match="holds another run"):
        carry_out({tmp_path: comparison(arms_of(["sgd"], replace(SETTINGS, rho=None, alpha=None, every=None, lr=0.3)))})


def test_where_rho_falls_the_control_falls_with_it_to_the_same_mean(tmp_path):
    study = comparison(arms_of(["eigen-sam"], replace(SETTINGS, rho_schedule="cosine", every=20)), seeds=[0])
    assert carry_out({tmp_path: study}, workers=1, mirrors=["tensorboard"]) == {}
    measured, control = (Run.open(tmp_path / f"runs/{name}/seed-0") for name in ("eigen-sam", "sam-equal-norm"))
    norms = [run.summary["mean_displacement_norm"] for run in (measured, control)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert norms[0] < 0.08 < 0.1 < control.config["rho"]
    for run in (measured, control):  # and each run is in its mirror
        shown = scalars(run.path / "tensorboard")["train/rho"]
        assert [rho for _, rho in shown] == pytest.approx([r["rho"] for r in run.metrics() if r["kind"] == "train"])

    shutil.rmtree(measured.path / "tensorboard")  # a run that is done but not in its mirror is still to do
    assert {job.folder: job.done() for job in study.jobs(tmp_path, ["tensorboard"])} == {
        measured.path: False,
        control.path: True,
    }


def test_a_mirror_that_cannot_be_had_is_refused_before_anything_starts(tmp_path):
    study = comparison(arms_of(["sgd"], replace(SETTINGS, rho=None, alpha=None, every=None)))
    with pytest.raises(ValueError, match="no mirror 'wand'; did you mean 'wandb'"):
        carry_out({tmp_path / "out": study}, mirrors=["wand"])
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path):
    good = Arm("sgd", "SGD", TrainConfig(method="sgd", subset=100, widths=(8,), steps=4))
    bad = Arm("broken", "Broken", TrainConfig(method="eigen-sam", data="folder:/no/such/folder", steps=4))
    control = Arm("control", "Control", TrainConfig(method="sam", steps=4), "control", norm_of="broken")
    failures = carry_out({tmp_path: comparison([good, bad, control], seeds=[0])}, workers=1)
    assert set(failures) == {"Broken, seed 0", "Control, seed 0"}
    assert "/no/such/folder" in failures["Broken, seed 0"]
    assert Run.open(tmp_path / "runs/sgd/seed-0").status == "finished"
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_killed_process_is_reported_and_the_next_run_gets_a_new_one(tmp_path):
    forever = TrainConfig(method="sgd", subset=100, widths=(8,), steps=10**6, probe_every=0, checkpoint_every=50)
    arms = [Arm("long", "Long", forever, weight=2.0), Arm("short", "Short", replace(forever, steps=4))]
    killer = threading.Thread(target=kill_child_once, args=(tmp_path / "runs/long/seed-0/checkpoints",))
    killer.start()
    failures = carry_out({tmp_path: comparison(arms, seeds=[0])}, workers=1)
    killer.join()
    assert list(failures) == ["Long, seed 0"]
    assert "signal SIGKILL" in failures["Long, seed 0"]
    assert Run.open(tmp_path / "runs/short/seed-0").status == "finished"


def test_ctrl_c_ends_the_processes_at_a_checkpoint(tmp_path):
    forever = TrainConfig(method="sgd", subset=100, widths=(8,), steps=10**6, probe_every=0, checkpoint_every=10**6)
    folder = tmp_path / "runs/long/seed-0"

    def interrupt():
        wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        carry_out({tmp_path: comparison([Arm("long", "Long", forever)], seeds=[0])}, workers=1)
    thread.join()
    run = Run.open(folder)
    assert run.status == "unfinished"
    assert len(run.checkpoints()) == 1
    assert not children()


def test_there_must_be_a_process():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        carry_out({}, workers=0)


def kill_child_once(checkpoints):
    wait_for(lambda: any(checkpoints.glob("*.pt")))
    for child in children():
        os.kill(child, signal.SIGKILL)


def children():
    """The workers that this process has started, by their parent's number in /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and "flatwise.experiments.worker" in command:
            found.append(int(stat.parent.name))
    return found


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
