"""What a reader must know before the numbers: runs that did not finish, and files that could not be read whole."""

from __future__ import annotations

from flatwise.report.study import Study, Trial

STATUS = {
    "diverged": "diverged",
    "unfinished": "is unfinished",
    "missing": "has not been started",
    "unreadable": "cannot be read",
}


def notices(study: Study) -> list[str]:
    """One sentence for each run that counts in no mean, and for each damaged file; those of sections and edge study too."""
    where = f"{study.heading}: " if study.heading else ""
    found = [
        where + _sentence(arm.label, trial) for arm in study.arms for trial in arm.trials if trial.status in STATUS
    ]
    others = [*study.sections, *filter(None, [study.edge])]
    return list(dict.fromkeys([*found, *study.warnings, *(notice for other in others for notice in notices(other))]))


def _sentence(label: str, trial: Trial) -> str:
    reason = f" ({trial.summary['reason']})" if trial.summary.get("reason") else ""
    return f"{label}, {trial.name}, {STATUS[trial.status]}{_where(trial)}{reason}: it is left out of every mean."


def _where(trial: Trial) -> str:
    """The step that a run reached, as far as it is known."""
    last = trial.probes[-1].get("step") if trial.probes else None
    step = trial.summary.get("steps", last)
    return "" if step is None else f" at step {step}"
