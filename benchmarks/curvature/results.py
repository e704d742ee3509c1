"""Results on disk, one file for each part, with the machine they were made on."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import flatwise

FOLDER = Path(tempfile.gettempdir()) / "flatwise-curvature"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """A folder of results."""

    folder: Path

    def save(self, part: str, rows: Rows, **facts: Any) -> None:
        """Write a part, in place of what was there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"rows": rows, **facts, "made": circumstances()}
        self._path(part).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def load(self, part: str) -> dict[str, Any]:
        """What was written; empty where nothing was."""
        path = self._path(part)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def rows(self, part: str) -> Rows:
        return self.load(part).get("rows", [])

    def _path(self, part: str) -> Path:
        return self.folder / f"{part.replace(', ', '-').replace(' ', '-')}.json"


def circumstances() -> dict[str, Any]:
    """Where and when, and how busy the machine was."""
    return {
        "torch": str(torch.__version__),
        "flatwise": flatwise.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "date": time.strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """Its name, where the system says so."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
