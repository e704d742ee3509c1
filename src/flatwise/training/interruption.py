"""Ctrl-C during a run: the step in hand is finished and a checkpoint written before the process ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from flatwise.runs import Run

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has stopped at a checkpoint. `run` can be resumed; `signal` says what asked."""

    def __init__(self, run: Run, step: int, signal: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.run = run
        self.step = step
        self.signal = signal


class Interruption:
    """As a context: the first SIGINT or SIGTERM is only noted in `received`; a second one acts at once.

    Signals are a matter of the main thread; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
