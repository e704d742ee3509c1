"""Many jobs on a few processes: some wait for others, one that fails does not stop the rest, and Ctrl-C ends all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from flatwise.processes.engines import Engine, EngineName, Worker, engine_by_name

PATIENCE = 30.0
"""Seconds that interrupted processes have to write down what they have."""


class Job(Protocol):
    """Something to do: a run to train, a checkpoint to measure."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def place(self) -> Path:
        """Where its result lies; no other job has it."""
        ...

    @property
    def after(self) -> Sequence[Path]:
        """The places of the jobs that must be done before."""
        ...

    @property
    def weight(self) -> float:
        """Its share in the work, for the estimate of the remaining time."""
        ...

    def done(self) -> bool:
        """Whether its result is there already. Raises ValueError or OSError where it cannot be made."""
        ...

    def order(self) -> dict[str, Any]:
        """What the process is told, as JSON values; asked for when the job starts."""
        ...


class Pool:
    """Does jobs on so many processes at a time.

    Args:
        jobs: in the order in which they should start.
        server: the module that the processes run, which calls `flatwise.processes.serving.serve`.
        workers: the number of processes; None: as many as the engine has room for.
        log: a file for what the processes print, and for what became of those that were lost.
        progress: called with the share of the work done (0 to 1) and the number of jobs done.
        engine: where the processes run: "local" on this machine, "ray" on a Ray cluster.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        server: str,
        workers: int | None,
        log: Path,
        progress: Callable[[float, int], None] | None = None,
        engine: EngineName = "local",
    ) -> None:
        self.failures: dict[str, str] = {}
        self._pending = list(jobs)
        self._shares = {job.place: 0.0 for job in jobs}
        self._weights = {job.place: job.weight for job in jobs}
        self._ended: set[Path] = set()
        self._changed = threading.Condition()
        self._log = log
        self._progress = progress or (lambda _share, _number: None)
        self._engine = engine_by_name(engine, server, log, workers)
        self._wanted = workers
        self._workers: list[Worker] = []
        self._serving = 0
        self._stopping = False

    def run(self) -> dict[str, str]:
        """Do all jobs; returns what failed: name of the job and reason.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the processes have written down what they have and ended.
            OSError or ValueError: the engine cannot be had.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._nothing_left():  # a cluster takes seconds to start
            return {}
        with self._engine as engine:
            self._start(engine)
            try:
                self._wait(None)
            except KeyboardInterrupt:
                self._stop()
                raise
        return self.failures

    def _nothing_left(self) -> bool:
        try:
            return all(job.done() for job in self._pending)
        except (ValueError, OSError):  # which is for the job to report
            return False

    def _start(self, engine: Engine) -> None:
        """One thread per process."""
        self._serving = min(self._wanted or engine.capacity(), len(self._pending))
        for _ in range(self._serving):
            threading.Thread(target=self._serve, args=(engine,), daemon=True).start()

    def _serve(self, engine: Engine) -> None:
        """Give a process one job after another."""
        worker: Worker | None = None
        try:
            while job := self._next():
                failure: str | None = None
                try:
                    if not job.done():
                        worker, failure = self._have_done(job, worker, engine)
                except (ValueError, OSError) as error:
                    failure = str(error)
                except Exception as error:  # else nobody heard of it, and jobs after this one would wait for ever
                    failure = repr(error)
                self._end(job, failure)
            if worker:
                worker.dismiss()
        finally:
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def _have_done(self, job: Job, worker: Worker | None, engine: Engine) -> tuple[Worker, str | None]:
        """Have a process do the job, and another one where it is killed; returns the last one, and why the job failed."""
        attempt = 1
        while True:
            worker = worker if worker and worker.alive() else self._hire(engine)
            if (message := self._follow(job, worker)) is not None:
                return worker, message.get("failed")
            ending = worker.ending()
            reason = f"its process ended with {ending.words}"
            if attempt > engine.retries or self._stopping or not ending.killed:
                times = f" in attempt {attempt} of {attempt}" if attempt > 1 else ""
                return worker, f"{reason}{times}; what it printed is in {self._log}"
            attempt += 1
            self._note_down(f"{job.name}: {reason}; attempt {attempt} of {engine.retries + 1} begins")

    def _follow(self, job: Job, worker: Worker) -> dict[str, Any] | None:
        """Have a process do the job; returns its message about the end, or None where the process ended before."""
        try:
            for message in worker.work(job.order()):
                if "step" not in message:
                    return message
                self._note(job, message["step"] / message["total"])
        except Exception:  # what it still says of this job must not be taken for the next one's
            worker.kill()
            worker.dismiss()
            raise
        return None

    def _hire(self, engine: Engine) -> Worker:
        worker = engine.hire()
        with self._changed:
            self._workers.append(worker)
        return worker

    def _note_down(self, sentence: str) -> None:
        with self._changed, self._log.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now().isoformat(timespec='seconds')} {sentence}\n")

    # --- the list of jobs ---------------------------------------------------------------------------------------------

    def _next(self) -> Job | None:
        """The next job whose predecessors are done; None when there is no more."""
        with self._changed:
            while self._pending:
                ready = next((job for job in self._pending if self._ended.issuperset(job.after)), None)
                if ready:
                    self._pending.remove(ready)
                    return ready
                self._changed.wait()
            return None

    def _end(self, job: Job, failure: str | None) -> None:
        with self._changed:
            if failure:
                self.failures[job.name] = failure
            self._ended.add(job.place)
            self._changed.notify_all()
        self._note(job, 1.0)

    def _note(self, job: Job, share: float) -> None:
        with self._changed:
            self._shares[job.place] = share
            done = sum(self._weights[place] * share for place, share in self._shares.items())
            self._progress(done / sum(self._weights.values()), len(self._ended))

    def _stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._pending.clear()
            self._changed.notify_all()
            workers = list(self._workers)
        for worker in workers:
            worker.interrupt()
        self._wait(PATIENCE)
        for worker in workers:
            worker.kill()

    def _wait(self, seconds: float | None) -> None:
        """Until all threads are through. Not by `Thread.join`, which an interruption leaves in disorder before Python 3.13."""
        with self._changed:
            self._changed.wait_for(lambda: not self._serving, seconds)
