"""Hyper-parameters of methods as words: `samples=3` for every method that has it, `tsam.samples=3` for one method only.

So they stand on the command line after `--hyper`, and in the settings of a run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = float | int | bool | str | None
"""What a hyper-parameter may be."""


@dataclass(frozen=True)
class Hyper:
    """One word: a name and a value, for one method or (None) for all that have it."""

    name: str
    value: Value
    method: str | None = None


def read(word: str) -> Hyper:
    """Take a word apart. Numbers (.5, too), true, false and null are read as such; other values are texts.

    Raises:
        ValueError: it is no `name=value` or `method.name=value`.
    """
    place, equals, text = word.partition("=")
    method, dot, name = place.rpartition(".")
    if not (equals and name.isidentifier() and text and (method or not dot)):
        raise ValueError(f"hyper takes words such as samples=3 or tsam.samples=3, not {word!r}")
    return Hyper(name, _value(text), method or None)


def write(values: Mapping[str, Value]) -> tuple[str, ...]:
    """The words that `read` takes apart into these values, in their order."""
    return tuple(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items())


def for_method(words: Iterable[str], method: str) -> dict[str, Value]:
    """The values that words give to a method, by name; those for it alone go before those for all."""
    entries = [read(word) for word in words]
    common = {entry.name: entry.value for entry in entries if entry.method is None}
    return common | {entry.name: entry.value for entry in entries if entry.method == method}


def check(words: Iterable[str], flags: Collection[str] = ()) -> None:
    """Refuse words that cannot be read, and a hyper-parameter that is named twice.

    Args:
        words: to be checked.
        flags: the names of hyper-parameters that are given for all methods already.

    Raises:
        ValueError: as said.
    """
    seen: set[tuple[str | None, str]] = {(None, name) for name in flags}
    for entry in map(read, words):
        if (entry.method, entry.name) in seen:
            raise ValueError(
                f"{'.'.join(filter(None, (entry.method, entry.name)))} is given twice; leave one of them out"
            )
        seen.add((entry.method, entry.name))


def _value(text: str) -> Value:
    for take in (json.loads, float):  # JSON knows neither .5 nor 1.
        with suppress(ValueError):
            found = take(text)
            return text if isinstance(found, (list, dict)) else found
    return text
