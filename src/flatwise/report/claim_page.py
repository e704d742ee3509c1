"""The pages of claims: one for each with its verdict, figures, protocol and raw numbers, and a table over all of them."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from flatwise.report.claim_figures import claim_figures
from flatwise.report.failures import by_reason
from flatwise.report.figures import Figure
from flatwise.report.page import plotly, script_json, template
from flatwise.report.paper_figures import Format, draw
from flatwise.report.provenance import ABSENT, flat, shown
from flatwise.report.verdicts import Judged, Verdict, judged, verdict_of
from flatwise.runs import RunError, encode, read_mapping, replacing

FILE, PAGE = "claim.json", "report.html"
State: TypeAlias = Verdict | Literal["failed to run", "incomplete", "no verdict"]


@dataclass(frozen=True)
class Told:
    """A claim as its page shows it.

    Attributes:
        file: its `claim.json`.
        found: what that holds.
        criteria: decided by the seeds that are complete.
        figures: of its panels.
    """

    file: Path
    found: dict[str, Any]
    criteria: Sequence[Judged]
    figures: Sequence[Figure]

    @property
    def name(self) -> str:
        """Of the claim."""
        return self.found["name"]

    @property
    def page(self) -> Path:
        """Its page."""
        return self.file.with_name(PAGE)

    @property
    def failures(self) -> dict[str, str]:
        """What could not be measured or judged in the last call, with the reason."""
        return self.found.get("failures", {})

    @property
    def reasons(self) -> dict[str, str]:
        """The same, each reason once."""
        return by_reason(self.failures)

    @property
    def verdict(self) -> State:
        """The verdict; or why there is none: those that fail or are missing are no random sample of the seeds."""
        if self.failures:
            return "failed to run"
        if len(self.found["seeds"]) < self.found.get("asked", 0) or not self.found["seeds"]:
            return "incomplete"
        return "no verdict" if self.found["scale"] == "smoke" else verdict_of(self.criteria)

    @property
    def seeds(self) -> str:
        """How many, and how many of those that were asked for."""
        done, asked = len(self.found["seeds"]), self.found.get("asked", 0)
        return f"{done} of {asked}" if done < asked else str(done)

    @property
    def deciding(self) -> str:
        """The numbers behind the verdict in a line."""
        return "; ".join(_number(c) for c in self.criteria if c.decisive)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The settings, as written down."""
        return [(name.replace("_", " "), _in_line(value)) for name, value in _spread(self.found["preset"])]

    @property
    def machine(self) -> list[tuple[str, str]]:
        """Versions and hardware; where parts were measured on several, all of them."""
        records = [flat(one) for one in self.found.get("environments", [])]
        keys = dict.fromkeys(key for record in records for key in record)
        found = [(key, " | ".join(shown(record.get(key) for record in records))) for key in keys]
        return [(key, text) for key, text in found if text != ABSENT]

    @property
    def raw(self) -> str:
        """All that was concluded, as JSON."""
        return encode(self.found)

    @property
    def table(self) -> str:
        """Each seed's numbers, as CSV."""
        text = io.StringIO()
        rows = ([seed, *(c.at(place) for c in self.criteria)] for place, seed in enumerate(self.found["seeds"]))
        csv.writer(text, lineterminator="\n").writerows([["seed", *(c.name for c in self.criteria)], *rows])
        return text.getvalue()


def build_claims(folder: Path, formats: Sequence[Format] = ()) -> Path:
    """Write the page of each claim in a folder, and the page over all of them, whose path is returned.

    Args:
        folder: of all claims, as `flatwise reproduce` leaves it.
        formats: in which the figures of each claim are drawn for a paper, too, beside its page.

    Raises:
        RunError: there is no claim, or a file is damaged.
        ValueError: figures are wanted and matplotlib cannot be imported; the pages are there then.
    """
    told = [tell(file) for file in claim_files(folder)]
    if not told:
        raise RunError(f"{folder} holds no claim that was tried; `flatwise reproduce` tries them")
    for claim in told:
        _write_page(claim)
    rows = [(claim.page.relative_to(folder).as_posix(), claim) for claim in told]
    _write(folder / PAGE, template("claims.html.j2").render(claims=rows, counts=_counts(told)))
    for claim in told:
        draw(claim.figures, claim.file.with_name(claim.name), formats)
    return folder / PAGE


def claim_files(folder: Path) -> list[Path]:
    """What was concluded of each claim at each scale in a folder of claims, by name."""
    return sorted(folder.glob(f"*/*/{FILE}"))


def tell(file: Path) -> Told:
    """A claim, decided and drawn.

    Raises:
        RunError: the file is missing or damaged.
    """
    found = read_mapping(file)
    return Told(file, found, [judged(criterion) for criterion in found["criteria"]], claim_figures(found))


def last_verdicts(folder: Path) -> dict[str, str]:
    """The verdict of the last run of each claim in a folder of claims, with scale and seeds; of `smoke` if of no other."""
    told = [tell(file) for file in sorted(claim_files(folder), key=lambda file: file.stat().st_mtime)]
    told.sort(key=lambda claim: claim.found["scale"] != "smoke")
    return {claim.name: f"{claim.verdict} ({claim.found['scale']}, {claim.seeds} seeds)" for claim in told}


def verdict_lines(files: Iterable[Path]) -> list[str]:
    """A line for each claim with its verdict, and one below it for each number behind that."""
    return [line for file in files for line in _lines(tell(file))]


def _lines(claim: Told) -> list[str]:
    head = f"{claim.name} ({claim.found['scale']}, {claim.seeds} seeds): {claim.verdict}"
    return [head, *(f"  {_number(c)}" for c in claim.criteria if c.decisive)]


def _number(c: Judged) -> str:
    return f"{c.name} {c.mean} ({'; '.join(filter(None, (c.range, f'wanted: {c.wanted}', c.counted)))})"


def _write_page(claim: Told) -> None:
    figures = script_json({figure.name: figure.plot for figure in claim.figures})
    home = os.path.relpath(claim.file.parents[2] / PAGE, claim.file.parent)
    text = template("claim.html.j2").render(
        claim=claim, figures=figures, home=home, plotly=plotly() if claim.figures else ""
    )
    _write(claim.page, text)


def _spread(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A row for each setting; what all parts share stands by itself, and each arm and each cell has a row of its own."""
    for key, value in settings.items():
        if isinstance(value, dict):
            shared = key == "shared"
            entries = cast("dict[str, Any]", value).items()
            yield from ((name if shared else f"{key}: {name}", entry) for name, entry in entries)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ((f"{key}: {i}", entry) for i, entry in enumerate(cast("list[Any]", value)))
        else:
            yield key, value


def _in_line(value: Any) -> str:
    """A setting, or several, as text."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value).items()
        return ", ".join(f"{name.replace('_', ' ')} {_in_line(entry)}" for name, entry in entries)
    if isinstance(value, list):
        return ", ".join(map(_in_line, cast("list[Any]", value)))
    return shown([value])[0]


def _counts(told: Sequence[Told]) -> str:
    """How many claims have which verdict, in words."""
    return ", ".join(
        f"{number} {verdict}" for verdict, number in Counter(claim.verdict for claim in told).most_common()
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
