"""The numbers of a sweep or comparison for analysis elsewhere: one row for each run, and means with intervals."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatwise.report.study import Arm, Trial, number, read
from flatwise.runs import read_mapping, replacing, write_json
from flatwise.statistics import mean_interval


def write_results(folder: str | Path) -> tuple[Path, Path]:
    """Write `results.csv`, a row for each run, and `results.json`, with means and intervals too, into a sweep or comparison.

    Numbers that a run does not have, since it did not finish or they were not measured, are empty there and absent here.

    Raises:
        RunError: the folder is no sweep or comparison.
    """
    folder = Path(folder)
    study, plan = read(folder), read_mapping(folder / "comparison.json")
    entries = [_combination(arm, entry) for arm, entry in zip(study.arms, plan["arms"])]
    written = folder / "results.csv", folder / "results.json"
    _write_rows(written[0], entries, plan.get("swept") or [])
    names = ("title", "command", "swept", "seeds")
    write_json(written[1], {name: plan.get(name) for name in names} | {"combinations": entries})
    return written


def _combination(arm: Arm, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of an arm."""
    keys = dict.fromkeys(key for trial in arm.finished for key in trial.summary)
    return {
        "name": arm.name,
        "label": arm.label,
        "values": dict(arm.values) or {"method": arm.name},
        "runs": [_run(trial, path) for trial, path in zip(arm.trials, entry["runs"])],
        "means": {key: found for key in keys if (found := _mean(arm, key))},
    }


def _run(trial: Trial, path: str) -> dict[str, Any]:
    return {"seed": trial.seed, "status": trial.status, "folder": path, "numbers": dict(trial.summary)}


def _mean(arm: Arm, key: str) -> dict[str, Any] | None:
    """The mean over the seeds that finished and its 95 % interval; None where the numbers are no numbers."""
    values = [number(trial.summary, key) for trial in arm.finished]
    interval = mean_interval(values)
    if not interval.n:
        return None
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.n}


def _write_rows(path: Path, entries: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> None:
    names = list(swept) or ["method"]
    rows = [_row(entry["values"], run, names) for entry in entries for run in entry["runs"]]
    columns = dict.fromkeys(key for row in rows for key in row)
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)


def _row(values: Mapping[str, Any], run: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    chosen = {name: _cell(values.get(name)) for name in names}
    found = {key: run[key] for key in ("seed", "status", "folder")}
    return chosen | found | {key: _cell(value) for key, value in run["numbers"].items()}


def _cell(value: Any) -> Any:
    """Widths as on the command line; NaN and what is not there as nothing."""
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
