"""Whatever is killed, no finished run is lost, and of the others at most what came after their last checkpoint."""

import signal
import subprocess
import sys

import pytest
from processes.clusters import MARK, cluster, in_the_way, kill, marked, processes, wait_for

from flatwise.runs import Run

pytestmark = pytest.mark.slow
WORKER = "flatwise.experiments.worker"
RAY = pytest.param("ray", marks=pytest.mark.skipif(bool(in_the_way()), reason=in_the_way()))
SWEEP = "sweep --set lr=0.01,0.05 --seeds 2 --workers 2 --subset 100 --widths 8 --steps 6000 --probe-every 10 --no-curvature"
KEEPING = "--checkpoint-every 100 --keep-every 100"


@pytest.fixture(params=["local", RAY])
def engine(request):
    """The name of an engine and the environment in which it is found."""
    with cluster() if request.param == "ray" else marked() as environment:
        yield request.param, environment


def start(engine, out):
    name, environment = engine
    command = [sys.executable, "-m", "flatwise", *SWEEP.split(), *KEEPING.split(), "--engine", name, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(driver):
    """What it prints, and its exit code."""
    return driver.communicate(timeout=300)[0], driver.returncode


def in_the_middle(out):
    """Whether some runs are finished, and another one is on its way, far from its end."""
    begun = {path.parents[1] for path in out.glob("runs/*/*/checkpoints/step-00000200.pt")}
    begun -= {path.parents[1] for path in out.glob("runs/*/*/checkpoints/step-00004000.pt")}
    ended = {path.parent for path in out.glob("runs/*/*/done.json")}
    return bool(ended) and bool(begun - ended)


def kept(out):
    """When the marks of finished runs and the checkpoints were written; a run that begins again writes its first one again."""
    checkpoints = [path for path in out.glob("runs/*/*/checkpoints/step-*.pt") if path.stem != "step-00000000"]
    return {path: path.stat().st_mtime_ns for path in [*out.glob("runs/*/*/done.json"), *checkpoints]}


def assert_all_is_there(out, before):
    assert [run.status for run in runs(out)] == ["finished"] * 4
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing of it was made again
    assert (out / "report.html").is_file()


def assert_nothing_is_to_be_done_again(out):
    """Every run that had begun was written down at the step in hand: it goes on behind all that it recorded."""
    left = [run for run in runs(out) if run.status == "unfinished" and run.metrics()]
    assert left
    for run in left:
        assert int(run.checkpoints()[-1].stem.removeprefix("step-")) > run.metrics()[-1]["step"]


def runs(out):
    return [Run.open(path.parent) for path in out.glob("runs/*/*/config.json")]


def workers(engine):
    return processes(engine[1][MARK], WORKER)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_driver_takes_its_workers_along_and_the_same_command_continues(tmp_path, engine, number):
    driver = start(engine, tmp_path)
    wait_for(lambda: in_the_middle(tmp_path))
    before = kept(tmp_path)
    driver.send_signal(number)
    printed, code = finish(driver)
    assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number], printed
    wait_for(lambda: not workers(engine), 30)
    if number == signal.SIGINT:
        assert_nothing_is_to_be_done_again(tmp_path)
    printed, code = finish(start(engine, tmp_path))
    assert code == 0, printed
    assert_all_is_there(tmp_path, before)


@pytest.mark.parametrize("victim", [WORKER, "ray::Agent"])
@pytest.mark.parametrize("engine", [RAY], indirect=True)
def test_on_ray_a_killed_process_is_begun_again_where_it_was(tmp_path, engine, victim):
    driver = start(engine, tmp_path)
    wait_for(lambda: in_the_middle(tmp_path))
    before = kept(tmp_path)
    kill(processes(engine[1][MARK], victim)[:1])
    printed, code = finish(driver)
    assert code == 0, printed
    assert "attempt 2 of 4 begins" in (tmp_path / "log.txt").read_text()
    assert_all_is_there(tmp_path, before)


@pytest.mark.parametrize("engine", ["local"], indirect=True)
def test_on_this_machine_a_killed_process_is_reported_and_the_same_command_continues(tmp_path, engine):
    driver = start(engine, tmp_path)
    wait_for(lambda: in_the_middle(tmp_path))
    before = kept(tmp_path)
    kill(workers(engine))
    printed, code = finish(driver)
    assert code == 1
    assert "its process ended with signal SIGKILL" in printed
    assert finish(start(engine, tmp_path))[1] == 0
    assert_all_is_there(tmp_path, before)


def test_when_everything_is_killed_at_once_the_runs_go_on_elsewhere(tmp_path, engine):
    driver = start(engine, tmp_path)
    wait_for(lambda: in_the_middle(tmp_path))
    before = kept(tmp_path)
    kill(processes(engine[1][MARK]))
    assert finish(driver)[1] == -signal.SIGKILL
    with marked() as environment:  # runs are folders, whoever makes them
        printed, code = finish(start(("local", environment), tmp_path))
    assert code == 0, printed
    assert_all_is_there(tmp_path, before)
