"""What a part of a claim is made of, kept one by one: an interrupted part goes on after the last that was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flatwise.experiments.claims.claim import Values, plain
from flatwise.processes import Progress
from flatwise.runs import RunError, read_mapping, write_json


@dataclass(frozen=True)
class Stages:
    """Those of one part. Each must come out the same whether or not others were made before it in the same process.

    Attributes:
        folder: that the part may write into.
        settings: what its numbers hang on.
    """

    folder: Path
    settings: Values

    def keep(self, name: str, make: Callable[[], Values]) -> Values:
        """What is there under a name, or else what `make` gives, which is there from then on.

        Raises:
            RunError: it was made with other settings.
        """
        place = self.folder / f"{name}.json"
        if not place.exists():
            write_json(place, {"settings": self.settings, "made": make()})
        known = read_mapping(place)
        if known["settings"] != plain(self.settings):
            raise RunError(
                f"{place} was made with other settings; choose another folder (--out), or delete {self.folder}"
            )
        return cast(Values, known["made"])


def stage_of(progress: Progress, number: int, of: int) -> Progress:
    """Tells the progress of one stage as that of all of them, in thousandths of a stage; all take equally long."""
    return lambda done, total: progress(1000 * number + 1000 * done // total, 1000 * of)
