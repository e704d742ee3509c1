"""How hyper-parameters were chosen: what each arm reached on the validation split with every value of its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flatwise.report.quantities import MISSING, plain
from flatwise.report.study import Record, Study
from flatwise.statistics import mean_interval


@dataclass(frozen=True)
class Tried:
    """One value of a grid: the setting, its mean validation accuracy in percent as shown, and whether it was chosen."""

    setting: str
    accuracy: str
    chosen: bool


@dataclass(frozen=True)
class Choice:
    """An arm and the values that were tried for it, in their order."""

    label: str
    tried: Sequence[Tried]


@dataclass(frozen=True)
class Choices:
    """The tuning of one section: a sentence on how it was done, the number of columns, and a row for each arm."""

    heading: str
    how: str
    columns: int
    rows: Sequence[Choice]


def choices(study: Study) -> list[Choices]:
    """The tuning of the study and of its sections, as far as they have some."""
    return [_choices(part, part.tuning) for part in study.parts if part.tuning and part.tuning.get("arms")]


def _choices(study: Study, tuning: Record) -> Choices:
    rows = [_row(arm) for arm in tuning["arms"]]
    seeds: list[int] = tuning.get("seeds") or []
    share = f"{100 * float(tuning.get('validation') or 0):g}"
    how = (
        f"Mean accuracy (%) on {share} % of the training samples, held out and with the labels that training has, over "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))}) that are not judged. The highest "
        "was chosen, between equal ones that of the lowest loss; the judged runs train on all training samples. The others had "
        "nothing to tune."
    )
    return Choices(study.heading, how, max(len(row.tried) for row in rows), rows)


def _row(arm: Record) -> Choice:
    grid: Sequence[dict[str, Any]] = arm["grid"]
    return Choice(str(arm["label"]), [_tried(entry, entry["setting"] == arm["chosen"]) for entry in grid])


def _tried(entry: Record, chosen: bool) -> Tried:
    found: list[float | None] = entry["accuracies"]
    whole = all(value is not None for value in found)
    mean = mean_interval(value for value in found if value is not None).mean
    return Tried(str(entry["setting"]), plain(100 * mean, 1) if whole and found else MISSING, chosen)
