"""Progress for people: one line with the time gone and left, in the terminal, below the cell of a notebook, or in a log."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

Show = Callable[[float, float, str], None]
"""Called with how much is done, how much there is to do, and what is being done."""


def duration(seconds: float) -> str:
    """About how long, in seconds, minutes or hours, with two digits."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {float(f'{seconds / length:.2g}'):g} {unit}"
    return f"about {float(f'{seconds:.2g}'):g} s"


@contextmanager
def line() -> Generator[Show]:
    """Give a function that redraws the line; into a file a new one is written every minute."""
    console = Console(stderr=True)
    if console.is_jupyter:
        place = _below_the_cell()
    else:
        place = _in_the_terminal(console) if console.is_terminal else _in_a_file()
    with place as show:
        yield show


@contextmanager
def step_progress() -> Generator[Callable[[int, int], None]]:
    """Give a function of (steps taken, all steps) that redraws the line."""
    with line() as show:
        yield lambda step, total: show(step, total, "training")


@contextmanager
def _in_the_terminal(console: Console) -> Generator[Show]:
    """A bar that is gone when the work is."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, *times, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(done: float, total: float, what: str) -> None:
            if progress.tasks[0].total is None:  # what was there from the beginning says nothing about the speed
                progress.tasks[0].completed = done
            progress.update(task, completed=done, total=total, description=what)

        yield show


@contextmanager
def _in_a_file() -> Generator[Show]:
    """Standard error that nobody watches: work of less than a minute leaves no line there."""
    yield LogLine().show


@contextmanager
def _below_the_cell() -> Generator[Show]:
    """An output that is updated in place, without widgets; its last state stays in the notebook."""
    notebook = NotebookLine()
    try:
        yield notebook.show
    finally:
        notebook.close()


class Line(ABC):
    """How far something is, in words, told anew every so many seconds."""

    interval: float
    """Seconds between two updates."""

    def __init__(self) -> None:
        self._started = self._updated = time.monotonic()
        self._first: float | None = None
        self._done, self._total, self._what = 0.0, 0.0, "starting"

    def show(self, done: float, total: float, what: str) -> None:
        """Take up where things are, and tell it if that is due."""
        if self._first is None:
            self._first, self._started = done, time.monotonic()
        self._done, self._total, self._what = done, total, what
        if time.monotonic() - self._updated >= self.interval:
            self._updated = time.monotonic()
            self.tell()

    @abstractmethod
    def tell(self) -> None:
        """Show it to whoever reads."""

    def _text(self) -> str:
        if self._first is None:
            return self._what
        gone = time.monotonic() - self._started
        share, since = self._done / self._total, self._done - self._first
        if self._done >= self._total:
            return f"{self._what}: done in {_clock(gone)}"
        left = f", {_clock(gone * (self._total - self._done) / since)} left" if since else ""
        return f"{self._what}: {share:.0%}, {_clock(gone)} gone{left}"


class LogLine(Line):
    """A line on standard error each time."""

    interval = 60.0

    def tell(self) -> None:
        """Write it; that nobody reads it any more must not end the work."""
        with suppress(OSError):
            print(self._text(), file=sys.stderr, flush=True)


class NotebookLine(Line):
    """One output of a notebook's cell."""

    interval = 0.2

    def __init__(self) -> None:
        from IPython.display import display

        super().__init__()
        self._handle = cast("DisplayHandle", display(self._content(), raw=True, display_id=True))

    def tell(self) -> None:
        """Update the output."""
        self._handle.update(self._content(), raw=True)

    def close(self) -> None:
        """Leave the last state in the notebook."""
        if self._first is None:
            self._what = "nothing to do"
        self.tell()

    def _content(self) -> dict[str, str]:
        text = self._text()
        bar = f'<progress max="{self._total}" value="{self._done}"></progress>' if self._total else ""
        return {"text/plain": text, "text/html": f"{bar} {escape(text)}"}


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
