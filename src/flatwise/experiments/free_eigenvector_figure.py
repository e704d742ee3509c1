"""The figure of docs/free-eigenvector.md, drawn with matplotlib (the extra `docs`).

python -m flatwise.experiments.free_eigenvector_figure --out free-eigenvector --file free-eigenvector.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

from flatwise.experiments.free_eigenvector import PROBLEMS, read

ARMS = ("every-100", "every-10", "every-1", "first-form", "free")
RED, GREY = "#c03028", "#606060"


def draw(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """A panel per network: |cos| of every seed, the median over the places, and the mean of the seeds."""
    pyplot: Any = import_module("matplotlib.pyplot")
    networks = [name for name in PROBLEMS if any(run["network"] == name for run in runs)]
    figure, panels = pyplot.subplots(
        1, len(networks), figsize=(11, 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, network in zip(panels[0], networks, strict=True):
        _panel(panel, [run for run in runs if run["network"] == network and run["cosines"]])
        panel.set_title(network)
    panels[0][0].set_ylabel("|cos| with the exact eigenvector")
    panels[0][0].set_ylim(0, 1.02)
    figure.supxlabel("evaluations a step, and the arm", fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(panel: Any, runs: Sequence[dict[str, Any]]) -> None:
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in runs)]
    labels: list[str] = []
    for place, arm in enumerate(arms):
        mine = [run for run in runs if run["arm"] == arm]
        heights, colour = [median(run["cosines"]) for run in mine], RED if arm == "free" else GREY
        panel.plot([place] * len(heights), heights, "o", color=colour, alpha=0.45, markeredgewidth=0)
        panel.plot([place - 0.25, place + 0.25], [mean(heights)] * 2, color=colour, linewidth=2)
        evaluations = max(run["evaluations"] for run in mine)
        labels.append("\n".join([f"{evaluations:.2f}", *arm.split("-")]))
    panel.set_xticks(range(len(arms)), labels, fontsize=7)
    panel.set_xlim(-0.6, len(arms) - 0.4)
    panel.grid(axis="y", alpha=0.3)


def main(out: Path, file: Path) -> None:
    """Draw the runs.

    Args:
        out: the folder of the results.
        file: the picture, .svg or .png.
    """
    draw(list(read(out).values()), file)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
