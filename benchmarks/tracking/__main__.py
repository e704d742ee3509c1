"""The top eigenvalue every 50 steps of a whole training with SAM: how often it is right, and what it costs.

python -m benchmarks.tracking                                   # replays kept trainings; the first time it makes them
python -m benchmarks.tracking --engine double --set tol=0.05    # another engine, other arguments of EigenTracker
python -m benchmarks.tracking --live --seeds 0                  # trains with the tracker, and compares bitwise with the kept run

The trainings (cnn6, three epochs of 20,000 images of CIFAR-10, batches of 128) are kept in a folder (--folder) with the weights
and exact eigenvalues at every check, so that another setting of the tracker takes seconds. The share of the training is the time
of all updates divided by that of all steps, both measured around each check. CIFAR-10 is taken from FLATWISE_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import flatwise as fw
from benchmarks.curvature.cost import clock, spread
from benchmarks.curvature.results import FOLDER, Results
from benchmarks.curvature.training import loss_of
from benchmarks.tracking.checks import TRAINING, Run, is_checked, kept_run, trained
from benchmarks.tracking.replay import WITHIN, Answer, Setting, replayed, summary, update

USUAL = {"target": "values", "tol": 0.03, "search": 2}
"""Arguments of the tracker, where --set says nothing else."""


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    setting = Setting(options.engine, USUAL | dict(options.set))
    runs = {seed: kept_run(seed, options.folder) for seed in options.seeds}
    if options.live:
        for seed, run in runs.items():
            live(seed, run, setting)
        return
    rows = []
    for seed, run in runs.items():
        answers = replayed(run, setting)
        rows.append({"seed": seed, **summary(answers, TRAINING.steps), "answers": [asdict(a) for a in answers]})
        show(rows[-1], answers)
    summarise(rows)
    if options.keep:
        Results(options.folder / "results").save("tracking", rows, setting=asdict(setting))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--set", type=argument, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--live", action="store_true", help="train with the tracker in the loop")
    parser.add_argument("--keep", action="store_true", help="as the results that the page of the documentation shows")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where trainings and results are kept")
    return parser.parse_args()


def argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a number or a word."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def show(row: dict[str, Any], answers: list[Answer]) -> None:
    print(f"seed {row['seed']}")
    for a in answers:
        cost = f"{a.products:3} products {a.work:5.1f} work {a.seconds / a.gradient:5.1f} gradients"
        value = f"{a.value:9.3f}  exact {a.exact:9.3f}  {a.error:7.2%}  |cos| {a.alignment:.3f}"
        print(f"  {a.step:4}  {value}  {cost}  {a.reason}")
    print(f"  share of the training: {row['time']:.1%} of its time, {row['work']:.1%} of its work", flush=True)


def summarise(rows: list[dict[str, Any]]) -> None:
    good, checks = (sum(row[name] for row in rows) for name in ("good", "checks"))
    print(f"within {WITHIN:.0%} at {good} of {checks} checks ({good / checks:.0%})")
    print(
        f"share of the time {spread([r['time'] for r in rows], '.1%')}, of the work {spread([r['work'] for r in rows], '.1%')}"
    )
    print(f"an update after the first takes {spread([u for r in rows for u in r['later']])} gradients of the probe set")


def live(seed: int, run: Run, setting: Setting) -> None:
    """Train with the tracker in the loop; the weights at every check must be those of the run without."""
    tracker, checks = setting.tracker(), {check.step: check for check in run.checks}
    seconds, updates, objective, differing = [], [], None, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, probe in trained(seed):
            seconds.append(step.seconds)
            if is_checked(step.index):
                objective = objective or fw.Objective(step.model, loss_of, [probe], mode="eval")
                updates.append(clock(partial(update, tracker, objective, setting, step.index))[0])
                kept = checks[step.index].weights
                differing += not all(torch.equal(t, kept[name]) for name, t in step.model.state_dict().items())
    print(
        f"seed {seed}: updates took {sum(updates):.2f} s, steps {sum(seconds):.1f} s ({sum(updates) / sum(seconds):.1%}),"
    )
    print(f"  a step {statistics.median(seconds):.3f} s; the weights differed at {differing} of {len(updates)} checks")


if __name__ == "__main__":
    main()
