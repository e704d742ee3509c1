"""The local engine: processes of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from flatwise.processes.engines import Ending, cores


class LocalEngine:
    """Processes of this machine. A job whose process is lost is not begun again: here somebody killed it, or memory is out."""

    retries = 0

    def __init__(self, server: str, log: Path, workers: int | None) -> None:
        del workers
        self._server, self._log = server, log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def capacity(self) -> int:
        """One process per core."""
        return cores()

    def hire(self) -> Process:
        """Start a process."""
        return Process(self._server, self._log)


class Process:
    """A process that serves jobs. It has a session of its own, so that Ctrl-C in the terminal reaches only its parent.

    Args:
        server: the module that it runs.
        log: a file for what it prints.
        folder: that it works in; default: this process's.
        environment: its environment; default: this process's.
    """

    def __init__(
        self, server: str, log: Path, folder: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", server],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                cwd=folder,
                env=environment,
            )
        self._inbox = cast("IO[str]", self._process.stdin)
        self._outbox = cast("IO[str]", self._process.stdout)

    def work(self, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Have it carry out an order, and yield its messages, the last about the end; they end early when the process does."""
        try:
            self._inbox.write(json.dumps(order) + "\n")
            self._inbox.flush()
        except BrokenPipeError:
            return
        for line in self._outbox:
            yield (message := json.loads(line))
            if "step" not in message:
                return

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ending(self) -> Ending:
        """How the process ended."""
        self.dismiss()
        code = self._process.returncode
        return Ending(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}", code < 0)

    def interrupt(self) -> None:
        """Ask it to write down what it has and end."""
        if self.alive():
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self.alive():
            self._process.kill()

    def dismiss(self) -> None:
        """Let it end, as there are no more jobs, and wait until it has."""
        with suppress(BrokenPipeError):
            self._inbox.close()
        self._process.wait()
        self._outbox.close()
