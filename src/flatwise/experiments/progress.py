"""One line about the progress of many runs, with the remaining time; silent when standard error is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def overall_progress(number: int) -> Generator[Callable[[float, int], None]]:
    """Give a function of (share of the work done, runs done) that redraws the line."""
    with bar() as progress:
        task = progress.add_task(f"0 of {number} runs", total=1.0)

        def show(share: float, done: int) -> None:
            progress.update(task, completed=share, description=f"{done} of {number} runs")

        yield show


def bar() -> Progress:
    """A progress line on standard error."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *times, console=console, disable=not console.is_terminal, transient=True)


@contextmanager
def step_progress() -> Generator[Callable[[int, int], None]]:
    """Give a function of (steps taken, all steps) that redraws the line."""
    with bar() as progress:
        task = progress.add_task("training", total=None)
        yield lambda step, total: progress.update(task, completed=step, total=total)
