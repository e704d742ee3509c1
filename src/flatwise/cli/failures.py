"""What failed, diverged or is left out, said on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatwise.experiments import Comparison


def tell_failures(failures: Mapping[str, str]) -> None:
    """A line for each reason."""
    from flatwise import report

    for names, reason in report.by_reason(failures).items():
        print(f"flatwise: {names} failed: {reason}", file=sys.stderr)


def tell_diverged(folder: Path) -> bool:
    """A line with the runs of a comparison that diverged; whether any run has finished."""
    from flatwise.report.study import read

    study = read(folder)
    found = [(arm.label, trial) for part in study.parts for arm in part.arms for trial in arm.trials]
    if diverged := [(label, trial.seed) for label, trial in found if trial.status == "diverged"]:
        print(f"flatwise: diverged: {_by_label(diverged)}", file=sys.stderr)
    return any(trial.status == "finished" for _, trial in found)


def tell_left_out(folder: Path, comparison: Comparison) -> None:
    """A line with the runs that an earlier comparison of a folder has made, where this one does not name them."""
    from flatwise.runs import read_mapping

    file = folder / "comparison.json"
    if not file.is_file():
        return
    earlier = read_mapping(file)
    named = {(folder / arm.folder(seed)) for arm in comparison.arms for seed in comparison.seeds}
    runs = [(arm["label"], *run) for arm in earlier["arms"] for run in zip(earlier["seeds"], arm["runs"])]
    left = [(label, seed) for label, seed, run in runs if folder / run not in named and (folder / run).is_dir()]
    if left:
        which = f"{_by_label(left)}: not in this report; for one with them: {earlier['command']}"
        print(f"flatwise: {folder} also holds {which}", file=sys.stderr)


def _by_label(runs: Iterable[tuple[str, int | None]]) -> str:
    """Runs in words: those of an arm together, each once."""
    seeds: dict[str, list[str]] = {}
    for label, seed in dict.fromkeys(runs):
        seeds.setdefault(label, []).append(str(seed))
    return "; ".join(f"{label}, {'seed' if len(s) == 1 else 'seeds'} {', '.join(s)}" for label, s in seeds.items())
