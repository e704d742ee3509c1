"""`torchrun -m flatwise train` as people call it: what is printed, what a kill leaves, exit codes."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from flatwise.runs import Run

pytestmark = pytest.mark.slow

SETTINGS = [
    "--method",
    "eigen-sam",
    "--every",
    "2",
    "--subset",
    "101",
    "--widths",
    "12",
    "--batch-size",
    "32",
    "--lr",
    "0.1",
]
SHORT = [*SETTINGS, "--steps", "8", "--probe-every", "4", "--trace-samples", "0"]
LONG = [*SETTINGS, "--steps", "100000", "--probe-every", "50000", "--checkpoint-every", "50", "--no-curvature"]
PATIENCE = 180


def torchrun(*words):
    """Two processes; their output comes together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flatwise"]
    return subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alone(*words):
    done = subprocess.run([sys.executable, "-m", "flatwise", *words], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def finished(process):
    return process.communicate(timeout=PATIENCE)[0]


def children_of(process):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def until_it_has_saved(folder, steps=1):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (folder / "config.json").exists() and any(saved(path) >= steps for path in Run.open(folder).checkpoints()):
            return
        time.sleep(0.1)
    raise AssertionError("no checkpoint was written")


def saved(path):
    return int(path.stem.removeprefix("step-"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def weights(folder):
    return torch.load(Run.open(folder).checkpoints()[-1], weights_only=True)["model"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_speak_once_and_leave_the_run_of_one(tmp_path, parallel):
    process = torchrun("train", *SHORT, "--parallel", parallel, "--out", str(tmp_path / "two"))
    said = finished(process)
    assert process.returncode == 0, said
    assert said.count("test accuracy") == 1
    assert said.count("run folder") == 1
    alone("train", *SHORT, "--out", str(tmp_path / "one"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert list(one) == list(two)
    for name, t in one.items():
        torch.testing.assert_close(two[name], t, rtol=1e-3, atol=1e-5)
    environment = Run.open(tmp_path / "two").environment
    assert environment["processes"] == 2
    assert environment["command"].startswith("torchrun --nproc-per-node 2 -m flatwise train ")
    assert environment["command"].endswith(f" --parallel {parallel}")


def test_a_killed_process_ends_the_other_and_the_folder_goes_on(tmp_path):
    process = torchrun("train", *LONG, "--out", str(tmp_path / "run"))
    until_it_has_saved(tmp_path / "run")
    os.kill(children_of(process)[1], signal.SIGKILL)
    finished(process)
    assert process.returncode != 0
    run = Run.open(tmp_path / "run")
    assert run.status == "unfinished"
    before = saved(run.checkpoints()[-1])
    again = torchrun("train", "--resume", str(run.path))
    until_it_has_saved(run.path, steps=before + 50)
    again.send_signal(signal.SIGTERM)
    assert f"continue with: torchrun --nproc-per-node 2 -m flatwise train --resume {run.path}" in finished(again)
    assert saved(run.checkpoints()[-1]) > before


def test_sigterm_to_all_leaves_a_checkpoint_and_the_exit_code_of_one(tmp_path):
    """Without torchrun, which has an exit code of its own."""
    folder = tmp_path / "run"
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "flatwise", "train", *LONG, "--out", str(folder)]
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    both = [subprocess.Popen(command, env=os.environ | world | rank) for rank in ranks]
    until_it_has_saved(folder)
    for process in both:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(PATIENCE) for process in both] == [128 + signal.SIGTERM] * 2
    assert Run.open(folder).status == "unfinished"


def test_a_refusal_is_said_once(tmp_path):
    process = torchrun("train", "--method", "sma", "--out", str(tmp_path / "run"))
    said = finished(process)
    assert process.returncode != 0
    assert said.count("did you mean 'sam'") == 1
    assert not (tmp_path / "run").exists()


def test_other_commands_are_for_one_process(tmp_path):
    process = torchrun("compare", "--methods", "sgd", "sam")
    assert "flatwise compare is one process: start it without torchrun" in finished(process)
    assert process.returncode != 0
