"""A process that trains one run after another. Started by an engine of `flatwise.processes`."""

from __future__ import annotations

from typing import Any

from flatwise.processes import Progress, serve
from flatwise.training import TrainConfig, train


def make(order: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Make the run of a `flatwise.experiments.jobs.Job`."""
    config = TrainConfig.from_dict(order["config"])
    run = train(config, order["folder"], progress=progress, mirrors=order["mirrors"])
    return {"status": run.status}


if __name__ == "__main__":
    serve(make)
