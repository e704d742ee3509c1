"""Many jobs on a few local processes: some wait for others, one that fails does not stop the rest, and Ctrl-C ends all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, cast

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
        workers: the number of processes.
        log: a file for what the processes print.
        progress: called with the share of the work done (0 to 1) and the number of jobs done.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        server: str,
        workers: int,
        log: Path,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        self.failures: dict[str, str] = {}
        self._pending = list(jobs)
        self._shares = {job.place: 0.0 for job in jobs}
        self._weights = {job.place: job.weight for job in jobs}
        self._server = server
        self._ended: set[Path] = set()
        self._changed = threading.Condition()
        self._log = log
        self._progress = progress or (lambda _share, _number: None)
        self._workers: list[Worker] = []
        self._serving = min(workers, len(jobs))

    def run(self) -> dict[str, str]:
        """Do all jobs; returns what failed: name of the job and reason.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the processes have written down what they have and ended.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(self._serving):
            threading.Thread(target=self._serve, daemon=True).start()
        try:
            self._wait(None)
        except KeyboardInterrupt:
            self._stop()
            raise
        return self.failures

    def _serve(self) -> None:
        """One thread per process: give it one job after another."""
        worker: Worker | None = None
        try:
            while job := self._next():
                failure: str | None = None
                try:
                    if not job.done():
                        worker = worker if worker and worker.alive() else self._new_worker()
                        failure = self._follow(job, worker)
                except (ValueError, OSError) as error:
                    failure = str(error)
                self._end(job, failure)
            if worker:
                worker.dismiss()
        finally:
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def _follow(self, job: Job, worker: Worker) -> str | None:
        """Have a process do the job; returns why it failed."""
        for message in worker.work(job.order()):
            if "step" in message:
                self._note(job, message["step"] / message["total"])
            else:
                return message.get("failed")
        return f"its process ended with {worker.ending()}; what it printed is in {self._log}"

    def _new_worker(self) -> Worker:
        worker = Worker(self._server, self._log)
        with self._changed:
            self._workers.append(worker)
        return worker

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


class Worker:
    """A process that serves jobs. It has a session of its own, so that Ctrl-C in the terminal reaches only its parent."""

    def __init__(self, server: str, log: Path) -> None:
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", server],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._inbox = cast("IO[str]", self._process.stdin)
        self._outbox = cast("IO[str]", self._process.stdout)

    def work(self, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Have it carry out an order, and yield its messages; they end early when the process does."""
        try:
            self._inbox.write(json.dumps(order) + "\n")
            self._inbox.flush()
        except BrokenPipeError:
            return
        for line in self._outbox:
            yield json.loads(line)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ending(self) -> str:
        """How the process ended, in words."""
        code = self.dismiss()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def interrupt(self) -> None:
        """Ask it to write down what it has and end."""
        if self.alive():
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self.alive():
            self._process.kill()

    def dismiss(self) -> int:
        """Let it end, as there are no more jobs; returns its exit code."""
        with suppress(BrokenPipeError):
            self._inbox.close()
        code = self._process.wait()
        self._outbox.close()
        return code


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
