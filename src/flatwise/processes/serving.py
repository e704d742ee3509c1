"""A process that does one job after another: orders come in as JSON lines, progress and results go out as JSON lines.

Started by an engine of `flatwise.processes`. One process serves many jobs, since importing torch takes longer than a small one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO, TypeAlias

from flatwise.processes.memory import keep_memory

Say: TypeAlias = Callable[[dict[str, Any]], None]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with how much of a job is done, and how much there is to do."""

INTERVAL = 0.2
"""Seconds between two messages about progress."""


def serve(work: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    """Serve orders until the input ends or an interruption comes, which is the end of the process.

    Args:
        work: carries out an order and returns the message about its end; what it raises is reported, and the next order served.
    """
    keep_memory()
    _hear_interruptions()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        _serve(work)
    except (KeyboardInterrupt, BrokenPipeError):  # whoever started this has stopped it, or is gone
        os._exit(130)


def _serve(work: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    say = _speaker(_own_channel())
    for line in sys.stdin:
        try:
            say(work(json.loads(line), _throttled(say)))
        except Exception as error:  # whatever went wrong in one job, the others go on
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})


def _hear_interruptions() -> None:
    """Have interruptions arrive, also where whoever started this blocks them, as Ray does, or a shell in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with(parent: int) -> None:
    """End this process when its parent has ended: nobody hears it then, and the job belongs to whoever begins it again."""
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    os._exit(130)


def _own_channel() -> TextIO:
    """Standard output for our messages alone; whatever else prints there goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _speaker(channel: TextIO) -> Say:
    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return say


def _throttled(say: Say) -> Progress:
    last = 0.0

    def progress(step: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL:
            last = now
            say({"step": step, "total": total})

    return progress
