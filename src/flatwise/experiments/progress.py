"""The progress of many runs, with the remaining time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from flatwise.training.progress import line


@contextmanager
def overall_progress(number: int) -> Generator[Callable[[float, int], None]]:
    """Give a function of (share of the work done, runs done) that redraws the line."""
    with line() as show:
        yield lambda share, done: show(share, 1.0, f"{done} of {number} runs")
