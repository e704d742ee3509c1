"""A process that measures one network after another. Started by an engine of `flatwise.processes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flatwise.measurements.measuring import measure
from flatwise.measurements.plan import Plan
from flatwise.measurements.units import kept, source_from
from flatwise.processes import Progress, serve
from flatwise.runs import environment, write_json


def make(order: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure what a `Unit` orders, and write the numbers into its file as they come."""
    place, plan, source = Path(order["place"]), Plan.from_dict(order["plan"]), source_from(order["source"])
    torch.set_num_threads(order["threads"])
    about = {
        "source": order["source"],
        "label": source.label,
        "plan": plan.settled().to_dict(),
        "environment": environment(order["command"]),
        "threads": order["threads"],
    }

    def keep(found: dict[str, Any]) -> None:
        write_json(place, about | found)

    measure(source.build(plan), plan, before=kept(place), keep=keep, progress=progress)
    return {"place": str(place)}


if __name__ == "__main__":
    serve(make)
