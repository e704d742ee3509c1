import os
import signal
import threading
import time

import pytest
from measurements.runs import small_run

from flatwise.measurements import Plan, Request, carry_out
from flatwise.measurements.units import kept

LONG = Plan(what=("trace", "density"), probes=200, steps=100)
SHORT = Plan(what=("eigenvalues", "trace"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "run")


def test_each_checkpoint_gets_a_file_and_is_measured_once(run, tmp_path):
    units = Request([str(run.path)], SHORT).units()
    assert [unit.done() for unit in units] == [False] * 4
    units[1].place.parent.mkdir(parents=True)
    units[1].place.write_text('{"complete": tr')  # as after a crash of the disk
    (run.path / "checkpoints" / "step-00000007.pt").write_bytes(b"damaged")
    failures = carry_out(units, 1, tmp_path / "log.txt")
    assert list(failures) == [f"{run.path}, step 7"]
    assert "step-00000007.pt cannot be read" in failures[f"{run.path}, step 7"]
    assert [unit.done() for unit in units] == [True, True, False, True]
    for unit in units[::3]:
        found = kept(unit.place)
        assert found["source"]["step"] == found["record"]["step"] == unit.source.step
        assert found["plan"]["split"] == "train"
        assert found["environment"]["versions"]["torch"]

    done = [unit for unit in units if unit.done()]
    stamps = {unit.place: unit.place.stat().st_mtime_ns for unit in done}
    assert carry_out(done, 1, tmp_path / "log.txt") == {}
    assert {place: place.stat().st_mtime_ns for place in stamps} == stamps


def test_ctrl_c_keeps_the_quantities_that_were_measured(run, tmp_path):
    (unit,) = Request([str(run.path)], LONG, ["last"]).units()

    def interrupt():
        deadline = time.monotonic() + 60
        while "trace" not in kept(unit.place) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        carry_out([unit], 1, tmp_path / "log.txt")
    thread.join()
    half = kept(unit.place)
    assert half["complete"] is False
    assert "density" not in half
    assert not unit.done()
