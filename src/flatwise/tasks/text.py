"""Text as a task: sequences of characters, of which the next one is to be predicted at every place."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import torch
from torch import Tensor

from flatwise.tasks.downloads import cache_folder, into_cache, nowhere, places
from flatwise.tasks.source import Source, Split

LENGTH = 64
"""Characters of a sequence (arXiv 2309.12488's code)."""

HELD_OUT = 10_000
"""Lines at the end that are the test data where there are more than twice as many; else a tenth of them."""

FILE = "tinyshakespeare.txt"
ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def tinyshakespeare(root: str | None) -> Source:
    """Karpathy's excerpts of Shakespeare's plays, 40,000 lines: the file `tinyshakespeare.txt` below `root` if given, else below
    `FLATWISE_DATA`, else in the cache, downloaded if need be.

    Raises:
        ValueError: it is not below `root`, or is nowhere and cannot be downloaded.
    """
    return corpus("tinyshakespeare", tinyshakespeare_text(root))


def tinyshakespeare_text(root: str | None = None) -> str:
    """All of its characters, found as `tinyshakespeare` finds them.

    Raises:
        ValueError: as there.
    """
    return _read(_found(root))


def text_file(path: str) -> Source:
    """The characters of a text file of the user's.

    Raises:
        ValueError: there is none, it is not UTF-8, or it is too short for one sequence of each split.
    """
    return corpus(path, _read(Path(path).expanduser()))


def corpus(name: str, text: str) -> Source:
    """A text as sequences of 64 characters, and for each character the one that follows.

    The classes of an ASCII text are its 128 codes, those of another are the characters that it has, in their order. The last
    10,000 lines are the test data, or a tenth of the lines where there are no more than 20,000.

    Raises:
        ValueError: a split is shorter than one sequence and a character.
    """
    lines = text.splitlines(keepends=True)
    held_out = HELD_OUT if len(lines) > 2 * HELD_OUT else max(1, len(lines) // 10)
    known = [chr(code) for code in range(128)] if text.isascii() else sorted(set(text))
    codes = {character: i for i, character in enumerate(known)}
    pieces = ("".join(lines[:-held_out]), "".join(lines[-held_out:]))
    train, test = (_split(name, [codes[character] for character in piece]) for piece in pieces)
    how = f"{len(train):,} / {len(test):,} sequences of {LENGTH} characters, {len(known)} classes"
    return Source(train, test, len(known), f"{name}: {how}, the last {held_out:,} of {len(lines):,} lines for testing.")


def _split(name: str, codes: list[int]) -> Split:
    number = (len(codes) - 1) // LENGTH
    if number < 1:
        raise ValueError(
            f"{name} is too short: it needs {LENGTH + 1} characters in the last tenth of its lines, and before"
        )
    inputs, targets = (torch.tensor(codes[i : i + number * LENGTH]).view(number, LENGTH) for i in (0, 1))

    def read(indices: Tensor) -> Tensor:
        return inputs[indices]

    return Split(targets, read)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the text {path} cannot be read ({error}); name a file in UTF-8") from error


def _found(root: str | None) -> Path:
    wanted = [Path(root).expanduser() / FILE] if root is not None else [place / FILE for place in places()]
    there = [path for path in wanted if path.is_file()]
    if not there and root is not None:
        raise ValueError(
            f"tinyshakespeare is not below {root}, which should hold {FILE}; name another data root or none"
        )
    return there[0] if there else _downloaded()


def _downloaded() -> Path:
    try:
        into_cache(FILE, _fetch, cache_folder())
    except URLError as error:
        raise nowhere("tinyshakespeare", FILE, error) from error
    return cache_folder() / FILE


def _fetch(root: str) -> None:
    with urlopen(ADDRESS) as answer:
        (Path(root) / FILE).write_bytes(answer.read())
