"""What `flatwise measure` has left, read for a report: networks, and what sets them apart."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flatwise.report.palette import Style, styles
from flatwise.report.study import Arm, Record, Study, Trial, number, read, read_runs, settings
from flatwise.runs import RunError, read_mapping

START = Style("#7a828c", "solid")
"""How initial weights are drawn that all arms share."""


@dataclass(frozen=True)
class Network:
    """One network that was measured.

    Attributes:
        arm: the method with its settings that trained it, or its own name.
        seed: of its run; None for what is no run.
        step: of its weights; None where that is not known.
        style: of its arm.
        found: its numbers.
        several: whether there are other seeds, so that its own must be said.
        ended: whether its run ended with these weights, as far as is known; True for what is no run.
    """

    arm: str
    seed: int | None
    step: int | None
    style: Style
    found: Record
    several: bool = False
    ended: bool = True

    @property
    def run(self) -> str:
        """The arm, with its seed where that is needed."""
        return f"{self.arm}, seed {self.seed}" if self.several and self.seed is not None else self.arm

    @property
    def label(self) -> str:
        """The run and the step."""
        return self.run if self.step is None else f"{self.run}, step {self.step:,}"

    @property
    def finite(self) -> bool:
        """Whether its curvature could be measured."""
        return "reason" not in self.found

    def part(self, name: str) -> dict[str, Any]:
        """A quantity; empty when it was not measured."""
        return self.found.get(name) or {}

    def value(self, name: str) -> float:
        """The value of an estimate; NaN when it was not measured."""
        return number(self.part(name), "value")

    @property
    def top(self) -> float:
        """The largest eigenvalue; NaN when it was not measured."""
        values = (self.part("eigenvalues").get("top") or {}).get("values")
        return float(values[0]) if values else math.nan

    @property
    def negative(self) -> dict[str, Any]:
        """The negative part of the spectrum; empty when it was not measured."""
        return self.part("density").get("negative") or {}


def read_networks(files: Sequence[Path]) -> list[Network]:
    """The networks of some files, run after run, their steps ascending.

    Raises:
        RunError: a file is damaged or gone, or there is none.
    """
    if not files:
        raise RunError("nothing to report: no network has been measured")
    contents = [read_mapping(file) for file in files]
    folders = dict.fromkeys(c["source"]["run"] for c in contents if c["source"]["kind"] == "run")
    arms = _arms([Path(folder) for folder in folders])
    own = dict.fromkeys(_own_name(c) for c in contents if c["source"]["kind"] != "run")
    study = Study("", "comparison", "", [*_merged(arms.values()), *(Arm(name, name, "method", []) for name in own)])
    chosen = styles(study)
    found = [_network(content, arms, chosen) for content in contents]
    several = {n.arm for n in found if len({m.seed for m in found if m.arm == n.arm}) > 1}
    order = list(dict.fromkeys(n.arm for n in found))
    named = [replace(n, several=n.arm in several) for n in found]
    return sorted(named, key=lambda n: (order.index(n.arm), n.seed or 0, n.step or 0))


def _network(content: Record, arms: dict[str, Arm], chosen: dict[str, Style]) -> Network:
    source = content["source"]
    if source["kind"] != "run":
        name = _own_name(content)
        return Network(name, None, content.get("step"), chosen[name], content)
    arm = arms[source["run"]]
    trial = arm.trials[0]
    ended = source["step"] >= number(trial.summary, "steps")
    return Network(arm.label, trial.seed, source["step"], chosen[arm.name], content, ended=ended)


def _own_name(content: Record) -> str:
    return str(content["label"])


# --- the arms of runs -------------------------------------------------------------------------------------------------


def _arms(folders: Sequence[Path]) -> dict[str, Arm]:
    """The arm of each run, with this run alone in it: as its comparison calls it, else by what sets the runs apart."""
    placed = {str(folder): _from_comparison(folder) for folder in folders}
    alone = [folder for folder in folders if placed[str(folder)] is None]
    grouped = read_runs(alone).arms if alone else []
    found = {name: arm for name, arm in placed.items() if arm}
    return found | {str(folder): _of(grouped, read_runs([folder]).trials[0]) for folder in alone}


def _from_comparison(folder: Path) -> Arm | None:
    """A run lies at COMPARISON/runs/ARM/seed-N."""
    home = folder.resolve().parents[2] if len(folder.resolve().parents) > 2 else folder
    if not (home / "comparison.json").is_file():
        return None
    entries = read_mapping(home / "comparison.json").get("arms") or []
    place = folder.resolve().relative_to(home).as_posix()
    name = next((str(entry["name"]) for entry in entries if place in (entry.get("runs") or [])), None)
    trial = read_runs([folder]).trials[0]
    return None if name is None else replace(read(home).arm(name), trials=[trial])


def _of(arms: Sequence[Arm], trial: Trial) -> Arm:
    def key(one: Trial) -> str:
        return json.dumps(settings(one), sort_keys=True, default=str)

    return replace(next(arm for arm in arms if key(arm.trials[0]) == key(trial)), trials=[trial])


def _merged(arms: Any) -> list[Arm]:
    """Each arm once."""
    return list({arm.name: arm for arm in arms}.values())


# --- which networks a picture shows -----------------------------------------------------------------------------------

MOST = 4
"""So many checkpoints of one run can be told apart in one picture."""


def picture(networks: Sequence[Network], quantity: str) -> list[tuple[str, Style, Network]]:
    """The networks whose curves are drawn over one another, with labels and styles.

    Several arms: the end of each, with its first seed, and the initialisation where they share it. One run: some of its
    checkpoints, from first to last.
    """
    measured = [n for n in networks if n.part(quantity)]
    runs = list(dict.fromkeys((n.arm, n.seed) for n in measured))
    if len(runs) == 1 and len(measured) > 1:
        return _along(measured)
    firsts = dict(reversed(runs))
    ends = {n.arm: n for n in measured if firsts[n.arm] == n.seed}
    start = _shared_start([n for n in measured if firsts[n.arm] == n.seed])
    shown = [] if start is None else [("initialisation", START, start)]
    return shown + [(n.run, n.style, n) for n in ends.values() if n is not start]


def _along(networks: Sequence[Network]) -> list[tuple[str, Style, Network]]:
    last = len(networks) - 1
    places = sorted({round(i * last / (MOST - 1)) for i in range(MOST)})
    shades = ("#7a828c", "#e0a458", "#c96f4a", networks[0].style.color)[-len(places) :]
    chosen = zip(shades, (networks[i] for i in places), strict=True)
    return [(_moment(n, n is networks[-1]), Style(shade, "solid"), n) for shade, n in chosen]


def _moment(network: Network, last: bool) -> str:
    step = network.step or 0
    return "initialisation" if step == 0 else f"step {step:,}{', the last' if last else ''}"


def _shared_start(networks: Sequence[Network]) -> Network | None:
    """The initial weights, where every run has the same: their losses on the same data agree."""
    starts = [n for n in networks if n.step == 0]
    same = len({(n.found["loss"], number(n.found, "gradient_norm")) for n in starts}) == 1
    return starts[0] if same else None
