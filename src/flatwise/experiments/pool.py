"""Many runs on a few local processes: some wait for others, one that fails does not stop the rest, and Ctrl-C ends all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from flatwise.runs import Run
from flatwise.training import TrainConfig, resolved
from flatwise.training.mirrors import Mirrors

PATIENCE = 30.0
"""Seconds that interrupted processes have for their checkpoints."""


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        name: what it is called in messages.
        folder: its run folder.
        config: its settings, asked for when it starts.
        after: folders of the runs that must be done before.
        weight: its share in the work, for the estimate of the remaining time.
        mirrors: names of the mirrors that it is shown in.
    """

    name: str
    folder: Path
    config: Callable[[], TrainConfig]
    after: Sequence[Path] = ()
    weight: float = 1.0
    mirrors: Sequence[str] = ()

    def done(self) -> bool:
        """Whether the run is there already, and in its mirrors.

        Raises:
            RunError: the folder holds another run.
            ValueError: a mirror cannot be had.
        """
        mirrors = Mirrors(self.mirrors)
        if not (self.folder / "config.json").exists():
            return False
        run = Run.create(self.folder, resolved(self.config()).to_dict(), {})
        return run.status != "unfinished" and mirrors.know(run)


class Pool:
    """Makes runs on so many processes at a time.

    Args:
        jobs: the runs, in the order in which they should start.
        workers: the number of processes.
        log: a file for what the processes print.
        progress: called with the share of the work done (0 to 1) and the number of runs done.
    """

    def __init__(
        self, jobs: Sequence[Job], workers: int, log: Path, progress: Callable[[float, int], None] | None = None
    ) -> None:
        self.failures: dict[str, str] = {}
        self._pending = list(jobs)
        self._shares = {job.folder: 0.0 for job in jobs}
        self._weights = {job.folder: job.weight for job in jobs}
        self._ended: set[Path] = set()
        self._changed = threading.Condition()
        self._log = log
        self._progress = progress or (lambda _share, _number: None)
        self._workers: list[Worker] = []
        self._serving = min(workers, len(jobs))

    def run(self) -> dict[str, str]:
        """Make all runs; returns what failed: name of the job and reason.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the processes have written their checkpoints and ended.
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
        """Have a process make the run; returns why it failed."""
        for message in worker.make(job):
            if "step" in message:
                self._note(job, message["step"] / message["total"])
            else:
                return message.get("failed")
        return f"its process ended with {worker.ending()}; what it printed is in {self._log}"

    def _new_worker(self) -> Worker:
        worker = Worker(self._log)
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
            self._ended.add(job.folder)
            self._changed.notify_all()
        self._note(job, 1.0)

    def _note(self, job: Job, share: float) -> None:
        with self._changed:
            self._shares[job.folder] = share
            done = sum(self._weights[folder] * share for folder, share in self._shares.items())
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

    def __init__(self, log: Path) -> None:
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flatwise.experiments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._inbox = cast("IO[str]", self._process.stdin)
        self._outbox = cast("IO[str]", self._process.stdout)

    def make(self, job: Job) -> Iterator[dict[str, Any]]:
        """Have it make a run, and yield its messages; they end early when the process does."""
        order = {"config": job.config().to_dict(), "folder": str(job.folder), "mirrors": list(job.mirrors)}
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
        """Ask it to write a checkpoint and end."""
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
