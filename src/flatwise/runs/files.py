"""JSON that knows NaN and infinity, and files that survive a kill: a file is replaced as a whole, or a line is added.

Strict JSON has no NaN and no infinity, and readers other than Python's refuse them: they are written as the strings "nan",
"inf" and "-inf" and read back as floats. A text of exactly these letters is therefore read back as a float, too.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunWarning(UserWarning):
    """Something in a run folder could not be read; the rest was."""


def encode(value: Any) -> str:
    """One line of strict JSON; tuples become lists and keys become strings.

    Raises:
        TypeError: Something in it is neither a number, a text, True, False, None, nor a list or mapping of these.
    """
    return json.dumps(_spell(value), allow_nan=False)


def decode(text: str | bytes) -> Any:
    """The value of a JSON text written by `encode`. Raises ValueError where it is not valid JSON."""
    return _unspell(json.loads(text))


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return decode(path.read_bytes())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, indented for people, all of it or nothing."""
    text = json.dumps(_spell(value), allow_nan=False, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary path beside `path` to write to, and put it in the place of `path` when the body succeeds.

    Whenever the process is killed, `path` holds the old content or the new one, never a part. The folder is made if missing.
    One process at a time may write a path; a temporary file that a killed one left is written over. An OSError of the system
    that names no file, as writing to a full disk raises it, names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record as a line, in a single write that is on the disk on return.

    If the last write was cut off, the record starts on a line of its own, so that only the cut-off one is lost.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        line = (("" if _ends_a_line(file) else "\n") + encode(record) + "\n").encode()
        if os.write(file, line) < len(line):
            raise OSError(f"the disk is full: a record of {path} was cut off")
        os.fsync(file)
    finally:
        os.close(file)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write all records, one a line, all of them or nothing."""
    with replacing(path) as temporary:
        temporary.write_text("".join(encode(record) + "\n" for record in records), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, one a line; a line that cannot be read is skipped with a RunWarning that names it."""
    if not path.exists():
        return []
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    records = [_read_line(path, number, line) for number, line in lines if line.strip()]
    return [record for record in records if record is not None]


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        record = decode(line)
        if isinstance(record, dict):
            return cast("dict[str, Any]", record)
    warnings.warn(f"line {number} of {path} is cut off or damaged and was skipped", RunWarning, stacklevel=4)
    return None


def _ends_a_line(file: int) -> bool:
    size = os.fstat(file).st_size
    return size == 0 or os.pread(file, 1, size - 1) == b"\n"


def _spell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _spell(entry) for key, entry in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_spell(entry) for entry in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _unspell(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unspell(entry) for key, entry in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_unspell(entry) for entry in cast("list[Any]", value)]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
