"""What a pool asks of an engine: processes that do jobs, wherever they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

EngineName: TypeAlias = Literal["local", "ray"]
"""local: processes of this machine; ray: of a Ray cluster."""

PLACES: dict[EngineName, tuple[str, str]] = {
    "local": ("flatwise.processes.local", "LocalEngine"),
    "ray": ("flatwise.processes.cluster", "RayEngine"),
}


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        words: signal or exit code.
        killed: whether it was ended from outside, so that another attempt may do better.
    """

    words: str
    killed: bool


class Worker(Protocol):
    """A process that serves jobs, one after the other."""

    def work(self, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Have it carry out an order, and yield its messages, the last about the end; they end early when the process does."""
        ...

    def alive(self) -> bool:
        """Whether it can be given another order."""
        ...

    def ending(self) -> Ending:
        """How it ended; called when its messages have ended early."""
        ...

    def interrupt(self) -> None:
        """Ask it to write down what it has and end."""
        ...

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        ...

    def dismiss(self) -> None:
        """Let it end, as there are no more jobs."""
        ...


class Engine(Protocol):
    """Where processes come from, as a context: what it needs is there inside, and gone again afterwards."""

    @property
    def retries(self) -> int:
        """How often a job is begun again whose process was killed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def capacity(self) -> int:
        """How many processes it has room for."""
        ...

    def hire(self) -> Worker:
        """Start a process. Raises OSError or ValueError where it cannot be had."""
        ...


def engine_by_name(name: EngineName, server: str, log: Path, workers: int | None) -> Engine:
    """The engine of that name.

    Args:
        name: "local" or "ray".
        server: the module that its processes run, which calls `flatwise.processes.serving.serve`.
        log: a file for what they print.
        workers: how many are wanted; None: as many as there is room for.

    Raises:
        ValueError: there is no such engine.
    """
    if name not in PLACES:
        raise ValueError(f"there is no engine {name!r}; there are {', '.join(PLACES)}")
    module, kind = PLACES[name]
    return getattr(import_module(module), kind)(server, log, workers)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
