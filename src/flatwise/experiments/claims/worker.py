"""A process that measures one part of a claim after another. Started by an engine of `flatwise.processes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flatwise.experiments.claims.listed import claim_by_name
from flatwise.processes import Progress, serve
from flatwise.runs import environment, write_json


def make(order: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure what a `Unit` orders, and write its file when all is there."""
    torch.set_num_threads(1)
    place = Path(order["place"])
    settings = {name: order[name] for name in ("preset", "cell", "seed")}
    place.parent.mkdir(parents=True, exist_ok=True)
    claim = claim_by_name(order["claim"])
    measured = claim.measure(order["preset"], order["cell"], order["seed"], place.with_suffix(""), progress)
    write_json(place, {"settings": settings, "environment": environment(order["command"]), "measured": measured})
    return {"place": str(place)}


if __name__ == "__main__":
    serve(make)
