import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from flatwise.processes import Pool, cores, engines

TESTS = str(Path(__file__).parents[1])


@dataclass(frozen=True)
class Told:
    """A job for `processes.jobs`."""

    place: Path
    way: str = "works"
    times: int = 0
    after: tuple = ()
    weight: float = 1.0

    @property
    def name(self):
        return self.place.stem

    @property
    def tries(self):
        return int(Path(f"{self.place}.tries").read_text())

    def done(self):
        return self.place.exists()

    def order(self):
        return {"place": str(self.place), "way": self.way, "times": self.times}


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """The processes find this folder, and the engine that begins killed jobs again has a name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")])))
    monkeypatch.setitem(engines.PLACES, "patient", ("processes.patient", "Patient"))


def run(jobs, folder, engine="local", workers=2, progress=None):
    return Pool(jobs, "processes.jobs", workers, folder / "log.txt", progress, engine).run()


def test_what_fails_is_reported_and_the_rest_is_done(tmp_path):
    jobs = [Told(tmp_path / f"{way}.done", way, 1) for way in ("fails", "exits", "dies", "works")]
    shares = []
    failures = run(jobs, tmp_path, progress=lambda share, number: shares.append((share, number)))
    assert failures["fails"] == "KeyError: 'so it was told'"
    assert "its process ended with exit code 3; what it printed is in" in failures["exits"]
    assert "its process ended with signal SIGKILL; what it printed is in" in failures["dies"]
    assert len(failures) == 3
    assert jobs[-1].done()
    assert shares[-1] == (1.0, 4)
    assert shares == sorted(shares)
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_killed_job_is_begun_again_so_often_and_the_log_counts(tmp_path):
    twice, ever = Told(tmp_path / "twice.done", "dies", 2), Told(tmp_path / "ever.done", "dies", 99)
    failures = run([twice, ever], tmp_path, "patient")
    assert twice.done()
    assert (twice.tries, ever.tries) == (3, 3)
    assert list(failures) == ["ever"]
    assert "signal SIGKILL in attempt 3 of 3" in failures["ever"]
    log = (tmp_path / "log.txt").read_text()
    for name in ("twice", "ever"):
        for number in (2, 3):
            assert f"{name}: its process ended with signal SIGKILL; attempt {number} of 3 begins" in log


@dataclass(frozen=True)
class Untellable(Told):
    """A job of which the process cannot be told."""

    def order(self):
        raise KeyError("nobody foresaw this")


def test_what_nobody_foresaw_fails_one_job_alone_and_those_after_it_do_not_wait_for_ever(tmp_path):
    first = Untellable(tmp_path / "first.done")
    second = Told(tmp_path / "second.done", after=(first.place,))
    assert run([first, second], tmp_path, workers=1) == {"first": "KeyError('nobody foresaw this')"}
    assert second.done()


def test_what_went_wrong_by_itself_is_not_tried_again(tmp_path):
    jobs = [Told(tmp_path / "fails.done", "fails"), Told(tmp_path / "exits.done", "exits")]
    assert set(run(jobs, tmp_path, "patient")) == {"fails", "exits"}
    assert [job.tries for job in jobs] == [1, 1]


def test_a_job_waits_for_those_before_it_also_where_these_fail(tmp_path):
    first, second = Told(tmp_path / "first.done"), Told(tmp_path / "second.done")
    failed = Told(tmp_path / "failed.done", "fails")
    last = Told(tmp_path / "last.done", after=(first.place, second.place, failed.place))
    assert list(run([last, first, second, failed], tmp_path)) == ["failed"]
    assert last.place.read_text() == "2"


def test_what_is_done_is_not_done_again_and_then_no_engine_is_needed(tmp_path, monkeypatch):
    jobs = [Told(tmp_path / f"{i}.done") for i in range(3)]
    assert run(jobs[:2], tmp_path) == {}
    assert run(jobs, tmp_path) == {}
    assert [job.tries for job in jobs] == [1, 1, 1]
    monkeypatch.setattr("processes.patient.Patient.__enter__", None)
    assert run(jobs, tmp_path, "patient") == {}


def test_by_default_there_is_a_process_for_each_core(tmp_path):
    jobs = [Told(tmp_path / f"{i}.done") for i in range(2 * cores())]
    pool = Pool(jobs, "processes.jobs", None, tmp_path / "log.txt")
    assert pool.run() == {}
    assert len(pool._workers) == cores()


def test_an_unknown_engine_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no engine 'slurm'; there are local, ray"):
        run([], tmp_path, "slurm")
