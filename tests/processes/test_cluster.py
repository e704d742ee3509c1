"""Jobs on a Ray cluster end as they do on this machine."""

import shutil
import socket
import subprocess
import sys

import pytest
import torch
from processes.clusters import cluster, in_the_way, marked
from processes.test_pool import TESTS, Told

from flatwise.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(in_the_way()), reason=in_the_way())]
SWEEP = "sweep --set lr=0.01,0.1 --seeds 1 --workers 2 --subset 100 --widths 8 --steps 20 --probe-every 5"
POOL = """
import sys
from pathlib import Path
from processes.test_pool import Told
from flatwise.processes import Pool
folder = Path(sys.argv[1])
jobs = [Told(folder / f"{way}.done", way, times) for way, times in eval(sys.argv[2])]
print(Pool(jobs, "processes.jobs", 2, folder / "log.txt", engine="ray").run())
"""


def flatwise(words, environment, out):
    command = [sys.executable, "-m", "flatwise", *words.split(), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def pool(environment, folder, ways):
    environment = environment | {"PYTHONPATH": f"{TESTS}:{environment.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", POOL, str(folder), repr(ways)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_jobs_fail_retry_and_end_on_a_cluster_as_they_do_here_and_its_runs_are_the_same(tmp_path):
    with cluster() as environment:
        done = pool(environment, tmp_path, [("fails", 0), ("exits", 0), ("dies", 2), ("works", 0)])
        code, printed = flatwise(f"{SWEEP} --engine ray", environment, tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert "connected to the Ray cluster at" in done.stderr
    assert done.stderr.endswith(f":{environment['RAY_ADDRESS'].rpartition(':')[2]}\n")
    assert "'fails': \"KeyError: 'so it was told'\"" in done.stdout
    assert "its process ended with exit code 3" in done.stdout
    for way, tries in {"fails": 1, "exits": 1, "dies": 3, "works": 1}.items():
        assert Told(tmp_path / f"{way}.done").tries == tries
    log = (tmp_path / "log.txt").read_text()
    assert "dies: its process ended with signal SIGKILL; attempt 3 of 4 begins" in log
    assert "Traceback" in log
    assert not list(tmp_path.glob(".seen*"))

    assert code == 0, printed
    with marked() as environment:
        assert flatwise(SWEEP, environment, tmp_path / "here")[0] == 0
    for run in ("runs/lr=0.01/seed-0", "runs/lr=0.1/seed-0"):
        there, here = (Run.open(tmp_path / place / run) for place in ("there", "here"))
        weights = [torch.load(one.checkpoints()[-1], weights_only=False)["model"] for one in (there, here)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
        assert there.summary | {"seconds": 0} == here.summary | {"seconds": 0}


def test_where_no_cluster_runs_one_is_started_and_said_so(tmp_path):
    with marked() as environment:
        done = pool(environment, tmp_path, [("works", 0)])
    if "connected to the Ray cluster" in done.stderr:
        pytest.skip("somebody else's Ray cluster runs on this machine")
    assert done.returncode == 0, done.stderr
    assert "one was started with 2 CPUs, for this command only" in done.stderr
    assert done.stdout == "{}\n"


def test_an_address_at_which_nobody_answers_is_refused_at_once(tmp_path):
    with marked() as environment:
        code, printed = flatwise(f"{SWEEP} --engine ray", environment | {"RAY_ADDRESS": "127.0.0.1:6"}, tmp_path)
    assert code == 2
    assert printed == "flatwise: no Ray cluster answers at 127.0.0.1:6, where RAY_ADDRESS points\n"


def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    from flatwise.processes import cluster

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cluster._last_started() == ""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6\n")  # as `ray start` leaves it behind
    with pytest.raises(ConnectionError, match="refused"):
        cluster._knock(cluster._last_started())
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster._knock(f"127.0.0.1:{server.getsockname()[1]}")
    cluster._knock("ray://somewhere:6")  # what is no plain address is left to Ray


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="a node with another file system needs a mount namespace",
)
def test_a_node_that_does_not_see_the_folder_is_named_before_anything_starts(tmp_path):
    elsewhere = f'mount -t tmpfs none {tmp_path} && exec "$@"'
    with cluster(before=["unshare", "-m", "sh", "-c", elsewhere, "sh"]) as environment:
        code, printed = flatwise(f"{SWEEP} --engine ray", environment, tmp_path / "sweep")
    assert code == 2
    assert (
        f"does not see the folder {tmp_path / 'sweep'}; choose one (--out) on a file system that all nodes share"
        in printed
    )
    assert not list(tmp_path.glob("sweep/runs"))


def test_a_python_that_ray_cannot_start_is_refused_at_once(tmp_path, monkeypatch):
    from flatwise.processes import cluster as rays

    monkeypatch.setattr(rays.sys, "executable", "/home/a user/python")
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ValueError, match="path has a space"):
        rays._connect(1)
