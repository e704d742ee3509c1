"""A sweep: combinations of settings times seeds, made by parallel processes into one folder, which the report reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from flatwise.experiments.arms import OF_METHODS, arms_of, taken
from flatwise.experiments.comparison import Arm, Comparison, carry_out
from flatwise.experiments.labels import label
from flatwise.experiments.swept import NAMES, Grid
from flatwise.methods import names
from flatwise.processes import EngineName
from flatwise.runs import RunError, encode, read_mapping
from flatwise.training import Settings, TrainConfig, resolved
from flatwise.training.config import nearest

LONGEST = 120
"""Characters of a folder's name; a longer one is cut, and ends in a hash."""


@dataclass(frozen=True)
class Sweep:
    """Combinations of settings over seeds, before they are tried.

    Attributes:
        method: by name, unless methods are swept.
        settings: shared by all but for what is swept.
        grids: values by the names of settings, of which all combinations are tried; several grids one after the other.
        seeds: how many: 0, 1, 2 ...
        command: the command line that makes this again.

    Raises:
        ValueError: nothing is swept, or seeds is below 1.
    """

    method: str
    settings: Settings
    grids: Sequence[Grid]
    seeds: int
    command: str

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")
        if not self.names:
            raise ValueError("nothing is swept: name settings and their values, as in --set lr=0.01,0.1 model=mlp,cnn6")

    @property
    def names(self) -> list[str]:
        """What is swept, in the order in which it was named."""
        return list(dict.fromkeys(name for grid in self.grids for name in grid))

    def comparison(self, folder: Path) -> Comparison:
        """The combinations as arms. Those that the folder has already keep the name that they have there.

        Raises:
            ValueError: a setting is unknown (the nearest is named), has a value that it cannot have, or no effect.
        """
        arms = _named(self._arms(), folder)
        who = label(self.method) if "method" not in self.names else "Methods"
        title = f"{who} on {self.settings.data}" if "data" not in self.names else who
        title = f"{title}: {', '.join(self.names)}"
        return Comparison(title, arms, range(self.seeds), "", (), self.command, kind="sweep", swept=self.names)

    def carry_out(self, folder: Path, workers: int | None = None, engine: EngineName = "local") -> dict[str, str]:
        """Make all runs; returns what failed: name of the run and reason. Raises as `comparison.carry_out`."""
        return carry_out({folder: self.comparison(folder)}, workers, (), engine)

    def _arms(self) -> list[Arm]:
        """Each combination once: settings that a method does not have make no other one of it."""
        found: dict[str, Arm] = {}
        for grid in self.grids:
            for arm in self._arms_of(grid):
                found.setdefault(_key(resolved(arm.config)), arm)
        return list(found.values())

    def _arms_of(self, grid: Grid) -> list[Arm]:
        methods = [str(name) for name in grid.get("method", [self.method])]
        _check_names(grid, methods, self.settings)
        own = {name: values for name, values in grid.items() if name != "method"}
        found: list[Arm] = []
        for combination in product(*own.values()):
            values = dict(zip(own, combination))
            with_all = arms_of(methods, self._with(values), equal_norm=False)
            found += [_arm(arm, values, is_named="method" in grid) for arm in with_all]
        return found

    def _with(self, values: Mapping[str, Any]) -> Settings:
        """The settings with some values in their place, hyper-parameters of methods among the words of `hyper`."""
        fields = {name: value for name, value in values.items() if name in NAMES}
        words = [f"{name}={_text(value)}" for name, value in values.items() if name not in NAMES]
        try:
            return replace(self.settings, **fields, hyper=(*self.settings.hyper, *words))
        except ValueError as error:
            raise ValueError(f"{_setting(values)} is no possible combination: {error}") from error


def _check_names(grid: Grid, methods: Sequence[str], settings: Settings) -> None:
    """Refuse names that nobody knows, and settings that are both given and swept."""
    of_methods = {name for method in methods for name in taken(method)}
    for name in grid:
        if name == "seed":
            raise ValueError("seeds are not among the settings that are swept; say how many with --seeds")
        whose, _, own = name.rpartition(".")
        if whose and whose not in methods:
            raise ValueError(f"{name} is of {whose!r}, which is not tried{nearest(whose, methods)}")
        if name not in NAMES and own not in of_methods:
            hint = _owners(own) or nearest(own, {*NAMES, *of_methods})
            raise ValueError(f"there is no setting {name!r} to sweep with {', '.join(methods)}{hint}")
        if name in NAMES[1:] and getattr(settings, name) != getattr(Settings, name):
            raise ValueError(f"{name} {getattr(settings, name)} has no effect where {name} is swept; leave it out")


def _owners(name: str) -> str:
    """The end of an error sentence: the methods that have a hyper-parameter; empty where none has it."""
    owners = [method for method in names() if name in taken(method)]
    return f"; {', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it" if owners else ""


def _arm(arm: Arm, values: Mapping[str, Any], *, is_named: bool) -> Arm:
    """The arm of a combination: what it is called, and those of the values that its method has."""
    method = {"method": arm.name} if is_named else {}
    own = {name: value for name, value in values.items() if _reaches(name, arm.name)}
    words = [f"{name} {_text(value)}" for name, value in own.items()]
    heading = ", ".join([label(arm.name), *words] if is_named else words)
    return replace(arm, name=_folder(method | own), label=heading or label(arm.name), values=method | own)


def _reaches(name: str, method: str) -> bool:
    """Whether a setting is one of every run, or one that the method has."""
    whose, _, own = name.rpartition(".")
    everybody = name in NAMES and name not in OF_METHODS
    return everybody or (own in taken(method) and whose in ("", method))


def _named(arms: Iterable[Arm], folder: Path) -> list[Arm]:
    """The arms, those that the folder has under another name with that name, and no two with the same."""
    known, found = _known(folder), dict[str, Arm]()
    for arm in arms:
        key = _key(resolved(arm.config))
        name = known.get(key, arm.name)
        name = f"{name}-{_hash(key)}" if name in found else name
        found[name] = replace(arm, name=name)
    return list(found.values())


def _known(folder: Path) -> dict[str, str]:
    """The names of the combinations in a folder, by their settings."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("runs/*/seed-*/config.json")):
        try:
            found.setdefault(_key(read_mapping(path)), path.parent.parent.name)
        except RunError:  # damaged: the run will say so
            continue
    return found


def _key(config: TrainConfig | Mapping[str, Any]) -> str:
    """All settings but the seed, as they are in a run folder."""
    values = config.to_dict() if isinstance(config, TrainConfig) else config
    return json.dumps({name: json.loads(encode(values[name])) for name in sorted(values) if name != "seed"})


def _folder(values: Mapping[str, Any]) -> str:
    """A name for a folder, as readable as can be."""
    name = re.sub(r"[^\w.=,+-]+", "-", _setting(values))
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{_hash(name)}"


def _setting(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
