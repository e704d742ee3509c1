"""A process that trains one run after another: jobs come in as JSON lines, progress and results go out as JSON lines.

Started by `flatwise.experiments.pool`. One process serves many runs, since importing torch takes longer than a small run.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from flatwise.training import Interrupted, TrainConfig, train

Say = Callable[[dict[str, Any]], None]

INTERVAL = 0.2
"""Seconds between two messages about progress."""


def main() -> None:
    """Serve jobs until the input ends or an interruption comes."""
    say = _speaker(_own_channel())
    for line in sys.stdin:
        job = json.loads(line)
        try:
            config = TrainConfig.from_dict(job["config"])
            run = train(config, job["folder"], progress=_throttled(say), mirrors=job["mirrors"])
            say({"status": run.status})
        except Interrupted:
            return
        except Exception as error:  # whatever went wrong in one run, the others go on
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})


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


def _throttled(say: Say) -> Callable[[int, int], None]:
    last = 0.0

    def progress(step: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL:
            last = now
            say({"step": step, "total": total})

    return progress


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # whoever started this has stopped it, or is gone
        os._exit(130)
