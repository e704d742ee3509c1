"""A published statement, with the experiment and the test that decide it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from flatwise.processes import Progress

if TYPE_CHECKING:
    from flatwise.training import TrainConfig

Values: TypeAlias = dict[str, Any]
"""JSON values by name."""

Measure: TypeAlias = Callable[[Values, Values, int, Path, Progress], Values]
"""From the parameters, a cell, a seed, a folder to work in and whom to tell about progress, to what was measured."""


def plain(values: Values) -> Values:
    """As JSON gives them back: lists for tuples."""
    return json.loads(json.dumps(values))


@dataclass(frozen=True)
class Criterion:
    """One number over seeds, and where it must lie for the statement to hold.

    Attributes:
        name: short, for a table.
        meaning: what the number is, in a sentence.
        values: one for each seed.
        least: it must be at least that; None: no bound.
        most: it must be at most that; None: no bound.
        decisive: whether it decides the claim, or only accompanies it.
        exact: a count that is the same for every seed: it decides without a spread.
        seeds: the places of the seeds that gave the values, 0 for the first; None: all.
    """

    name: str
    meaning: str
    values: Sequence[float]
    least: float | None = None
    most: float | None = None
    decisive: bool = True
    exact: bool = False
    seeds: Sequence[int] | None = None


@dataclass(frozen=True)
class Line:
    """A curve of a panel, with a band around it where there are several seeds.

    Attributes:
        label: of the legend.
        x: where.
        y: means.
        low: of the band; empty: none.
        high: of the band.
        style: drawn as a line, a dashed line, or points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: Literal["line", "dashed", "points"] = "line"


@dataclass(frozen=True)
class Panel:
    """A figure with some lines.

    Attributes:
        title: what is drawn.
        x: of the horizontal axis.
        y: of the vertical axis.
        lines: the curves.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        levels: horizontal lines to compare with, by label.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log: str = ""
    levels: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Heat:
    """A figure with a grid of colored fields, each with its number.

    Attributes:
        title: what is drawn.
        x: of the horizontal axis.
        y: of the vertical axis.
        columns: where the fields are on the horizontal axis, from the left.
        rows: where they are on the vertical axis, from below.
        values: the numbers: a sequence of columns for each row; NaN leaves a field empty.
        color: what the numbers are.
        middle: the number of the neutral color, where numbers above and below it are told apart.
    """

    title: str
    x: str
    y: str
    columns: Sequence[float | str]
    rows: Sequence[float | str]
    values: Sequence[Sequence[float]]
    color: str
    middle: float | None = None

    def __post_init__(self) -> None:
        if [len(row) for row in self.values] != [len(self.columns)] * len(self.rows):
            raise ValueError(
                f"{self.title}: values must be {len(self.rows)} rows of {len(self.columns)} numbers, as rows and columns say"
            )


@dataclass(frozen=True)
class Outcome:
    """What the measured numbers say.

    Attributes:
        criteria: that decide.
        panels: to look at.
        notes: what has to be known to read them, in sentences.
    """

    criteria: Sequence[Criterion]
    panels: Sequence[Panel | Heat] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Claim:
    """A statement, how it is tried, and what decides it.

    Attributes:
        name: of the command line.
        statement: what is claimed, in a sentence.
        source: the paper, with its arXiv number; or "derived here".
        protocol: how it is tried, in sentences, fixed before it is run.
        scales: the parameters of each scale by name.
        seeds: how many, by scale.
        experiment: of which its numbers are; claims with the same experiment, scales and measure share them. Default: its own.
        cells: from the parameters to the parts that each seed has; each a small dict of JSON values. Default: the parameter
            "cells", or a single part.
        measure: does the work of a cell with a seed.
        judge: from the parameters and, for each seed, the measured values of all cells, to the outcome.
        trainings: from the parameters and a cell to the settings of the trainings that a part of it is made of: a dry run tells
            what it takes by a few steps of each, and at the scale "paper" counts and tries nothing. Without them it goes by the
            first seconds of the part.
    """

    name: str
    statement: str
    source: str
    protocol: str
    scales: Mapping[str, Values]
    seeds: Mapping[str, int]
    measure: Measure
    judge: Callable[[Values, Sequence[Sequence[Values]]], Outcome]
    experiment: str = ""
    trainings: Callable[[Values, Values], Sequence[TrainConfig]] | None = None
    cells: Callable[[Values], Sequence[Values]] = field(default=lambda preset: preset.get("cells", [{}]))

    def preset(self, scale: str) -> Values:
        """The parameters of a scale.

        Raises:
            ValueError: the claim has no such scale.
        """
        if scale not in self.scales:
            raise ValueError(f"{self.name} has no scale {scale!r}; there is {', '.join(self.scales)}")
        return dict(self.scales[scale])
