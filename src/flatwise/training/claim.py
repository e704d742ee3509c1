"""One process per run: two that train in the same folder would write their metrics into each other's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import IO

from flatwise.runs import Run, RunError


@contextmanager
def claimed(run: Run) -> Generator[None]:
    """Hold the run for this process; the system lets go of it when the process ends, however that happens.

    Raises:
        RunError: another process is training in the folder.
    """
    with (run.path / ".lock").open("w") as file:
        if not _lock(file):
            raise RunError(
                f"another process is training in the folder {run.path}; wait for it, or choose another --out"
            )
        yield


def _lock(file: IO[str]) -> bool:
    """Whether the file is ours now; where the system has no such locks, it always is."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True
