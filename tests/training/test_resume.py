import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from flatwise.runs import Run, RunError, RunWarning
from flatwise.training import Interrupted, TrainConfig, checkpoints, train

CONFIG = TrainConfig(
    method="eigen-sam", every=4, subset=200, widths=(16,), steps=24, probe_every=3, checkpoint_every=5, lr=0.1
)
CONFIGS = {
    "momentum": CONFIG,
    "adamw": replace(CONFIG, method="sam", every=None, optimizer="adamw", lr=0.01),
    "rho falls": replace(CONFIG, rho_schedule="linear"),
    "rho falls with the learning rate": replace(CONFIG, method="sam", every=None, rho_schedule="learning-rate"),
    "augmented cnn": replace(CONFIG, model="cnn6", widths=None, augment=True, subset=64, batch_size=16, steps=10),
}


class Killed(Exception):
    pass


def killed_at(step):
    def progress(done, total):
        if done == step:
            raise Killed

    return progress


def weights(run):
    return torch.load(run.checkpoints()[-1], weights_only=True)["model"]


def but_for_seconds(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_same(run, other):
    ours, theirs = weights(run), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert but_for_seconds(run.metrics()) == but_for_seconds(other.metrics())
    assert but_for_seconds([run.summary]) == but_for_seconds([other.summary])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, name):
    config = CONFIGS[name]
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", progress=killed_at(8))
    resumed = train(config, tmp_path / "killed")
    assert_same(resumed, train(config, tmp_path / "whole"))


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    with pytest.raises(Killed):
        train(CONFIG, tmp_path / "killed", progress=killed_at(4))
    assert not Run.open(tmp_path / "killed").checkpoints()
    assert_same(train(CONFIG, tmp_path / "killed"), train(CONFIG, tmp_path / "whole"))


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    with pytest.raises(Killed):
        train(CONFIG, tmp_path / "killed", progress=killed_at(12))
    run = Run.open(tmp_path / "killed")
    older, newest = run.checkpoints()
    newest.write_bytes(newest.read_bytes()[:-500])
    with pytest.warns(RunWarning, match=f"{newest.name} cannot be read"):
        resumed = train(CONFIG, run.path)
    assert older.name == "step-00000005.pt"
    assert_same(resumed, train(CONFIG, tmp_path / "whole"))


@pytest.mark.parametrize("rubbish", [b"", b"rubbish" * 100, b"\x80\x02garbage", b"PK\x03\x04", bytes(100)])
def test_a_file_of_rubbish_is_called_no_checkpoint_without_advice_to_run_it(tmp_path, rubbish):
    path = tmp_path / "step-00000005.pt"
    path.write_bytes(rubbish)
    with pytest.raises(RunError, match=r"step-00000005.pt cannot be read") as refused:
        checkpoints.load(path)
    assert "weights_only" not in str(refused.value)


FULL = """
import resource, signal, sys
from flatwise.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
main(["train", "--subset", "100", "--widths", "64", "--steps", "4", "--out", sys.argv[1]])
"""


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, "run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be written; is the disk full? (" in done.stderr
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_damaged_line_of_metrics_costs_only_that_line(tmp_path):
    with pytest.raises(Killed):
        train(CONFIG, tmp_path / "killed", progress=killed_at(12))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"kind": "probe", "st')
    with pytest.warns(RunWarning, match="cut off or damaged"):
        resumed = train(CONFIG, tmp_path / "killed")
    assert_same(resumed, train(CONFIG, tmp_path / "whole"))


def test_metrics_that_are_lost_are_missed(tmp_path):
    with pytest.raises(Killed):
        train(CONFIG, tmp_path / "killed", progress=killed_at(12))
    (tmp_path / "killed" / "metrics.jsonl").unlink()
    with pytest.warns(RunWarning, match="before step 10 are missing"):
        resumed = train(CONFIG, tmp_path / "killed")
    assert resumed.status == "finished"


def test_two_processes_never_train_in_one_folder(tmp_path):
    def second(done, total):
        if done == 7:
            with pytest.raises(RunError, match="another process is training"):
                train(CONFIG, tmp_path / "run")

    run = train(CONFIG, tmp_path / "run", progress=second)
    assert_same(run, train(CONFIG, tmp_path / "whole"))


def test_two_checkpoints_are_kept(tmp_path):
    run = train(CONFIG, tmp_path / "run")
    assert [path.name for path in run.checkpoints()] == ["step-00000020.pt", "step-00000024.pt"]


def test_ctrl_c_writes_a_checkpoint_at_the_step_in_hand(tmp_path):
    def interrupt(done, total):
        if done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at step 8") as stop:
        train(CONFIG, tmp_path / "stopped", progress=interrupt)
    assert stop.value.signal == signal.SIGINT
    assert stop.value.run.checkpoints()[-1].name == "step-00000008.pt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(train(CONFIG, tmp_path / "stopped"), train(CONFIG, tmp_path / "whole"))


SCRIPT = """
import sys
from flatwise.training import TrainConfig, train
train(TrainConfig.from_file(sys.argv[1]), sys.argv[2])
"""


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path):
    config = replace(CONFIG, steps=300, probe_every=60, checkpoint_every=20)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(config.to_dict()))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(settings), str(tmp_path / "killed")])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("checkpoints/step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run.open(tmp_path / "killed")
    assert run.status == "unfinished"
    assert run.checkpoints()
    assert_same(train(config, run.path), train(config, tmp_path / "whole"))
