"""A finding: what a peer did with some input, and what flatwise did with the same, in one run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[], tuple[str, str]]


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    problem: int
    asked: str
    peer: str
    theirs: str
    ours: str


@dataclass(frozen=True)
class Entry:
    """A check that waits to be run."""

    problem: int
    asked: str
    peer: str
    check: Check

    def run(self) -> Finding:
        try:
            theirs, ours = self.check()
        except ModuleNotFoundError as error:
            theirs, ours = f"not run: {error.name} is not installed", ""
        return Finding(self.problem, self.asked, version(self.peer), theirs, ours)


ENTRIES: list[Entry] = []


def check(problem: int, peer: str, asked: str) -> Callable[[Check], Check]:
    """Enter a function that returns what the peer did and what flatwise did, in a few words with measured numbers."""

    def enter(function: Check) -> Check:
        ENTRIES.append(Entry(problem, asked, peer, function))
        return function

    return enter


def version(peer: str) -> str:
    """The peer with its version; what is no package stays as it is."""
    try:
        return f"{peer} {importlib.metadata.version(peer)}"
    except importlib.metadata.PackageNotFoundError:
        return peer


def outcome(action: Callable[[], object], fine: str = "works") -> str:
    """What became of an action: its error in one line, or what it returned, or `fine`."""
    try:
        found = action()
    except Exception as error:
        return f"{type(error).__name__}: {first_line(str(error))}"
    return fine if found is None else str(found)


def first_line(text: str, limit: int = 120) -> str:
    """The first line with words in it, cut at a word."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0] + " ..."


def relative(error: float) -> str:
    """A relative error, in percent where it can be seen."""
    return f"{error:.0%} off" if error >= 0.005 else f"{error:.0e} off"
