"""Which values a sweep tries: words such as `lr=0.01,0.1`, and files with grids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, cast

from flatwise.training import Settings, hyper

Grid: TypeAlias = Mapping[str, Sequence[Any]]
"""Values to try by the name of the setting; all combinations are."""

NAMES = ("method", *(f.name for f in fields(Settings) if f.name != "hyper"))
"""Settings that can be swept; besides, hyper-parameters of methods."""

LISTS = tuple(f.name for f in fields(Settings) if "Widths" in str(f.type))
"""Settings whose value is a list of whole numbers: 64x32 among words, a list in a file."""


def read_words(words: Iterable[str]) -> Grid:
    """From words such as `lr=0.01,0.1`, `model=mlp,cnn6`, `widths=64x64,128` or `tsam.tilt=1,5`.

    Raises:
        ValueError: a word is none of these, or a setting stands there twice.
    """
    found: dict[str, Sequence[Any]] = {}
    for word in words:
        place, equals, text = word.partition("=")
        name = _name(place)
        texts = [one for one in text.split(",") if one]
        if not (name and equals and texts):
            raise ValueError(f"set takes words such as lr=0.01,0.1 or model=mlp,cnn6, not {word!r}")
        if name in found:
            raise ValueError(f"set names {name} twice; give all its values in one word")
        found[name] = _once([_value(name, one) for one in texts])
    return found


def read_file(path: Path) -> list[Grid]:
    """From a JSON file with an object of settings, each with a value or a list of values; or with a list of such objects.

    Raises:
        ValueError: it holds something else.
        FileNotFoundError: there is no such file.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    entries = cast("list[Any]", content) if isinstance(content, list) else [content]
    if not entries or not all(isinstance(entry, dict) and entry for entry in entries):
        raise ValueError(f"{path} should hold an object of settings and their values, or a list of such objects")
    return [{name: _listed(name, value) for name, value in entry.items()} for entry in entries]


def joined(grids: Sequence[Grid], more: Grid) -> list[Grid]:
    """Each of the grids with more settings, or those alone where there is no grid.

    Raises:
        ValueError: a setting is in both.
    """
    for name in more:
        if any(name in grid for grid in grids):
            raise ValueError(
                f"{name} is both in the grid file and among the words of --set; leave it out in one of them"
            )
    return [{**grid, **more} for grid in grids or [{}]]


def _name(place: str) -> str:
    """Of a setting: as its flag, batch-size, or as its field, batch_size. Names of methods keep their hyphens."""
    whose, dot, own = place.rpartition(".")
    return f"{whose}{dot}{own.replace('-', '_')}"


def _value(name: str, text: str) -> Any:
    if name not in LISTS:
        return hyper.read(f"{name}={text}").value
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{name} takes whole numbers joined by x, such as {name}=64x64,128, not {text!r}")
    return tuple(map(int, parts))


def _listed(name: str, value: Any) -> Sequence[Any]:
    """The values in a file: a list of them, or a single one."""
    if not isinstance(value, list):
        return (value,)
    values = cast("list[Any]", value)
    if name in LISTS:
        if not any(isinstance(one, list) for one in values):
            return (tuple(values),)
        return _once(tuple(cast("list[Any]", one)) if isinstance(one, list) else (one,) for one in values)
    if not values:
        raise ValueError(f"{name} has no values to try")
    return _once(values)


def _once(values: Iterable[Any]) -> Sequence[Any]:
    return tuple(dict.fromkeys(values))
