"""`flatwise list`: what there is by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True)
class List:
    """List the methods, data sets or models that have a name."""

    what: tyro.conf.Positional[Literal["methods", "data", "models"]]
    """What to list."""

    def run(self, words: Sequence[str]) -> int:
        """Print the names, each with a line about it."""
        del words
        from flatwise.tasks import data_names, model_names

        entries = {"methods": _methods, "data": data_names, "models": model_names}[self.what]()
        width = max(len(name) for name, _ in entries)
        for name, line in entries:
            print(f"{name:{width}}  {line}")
        return 0


def _methods() -> list[tuple[str, str]]:
    """Each method with its settings and the first line of its description."""
    from flatwise import methods

    return [(name, _described(methods.by_name(name))) for name in methods.names()]


def _described(method: object) -> str:
    first = (method.__doc__ or "").splitlines()[0]
    settings = ", ".join(f"{name} {value}" for name, value in vars(method).items())
    return f"{first} [{settings}]" if settings else first
