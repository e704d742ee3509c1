"""The demonstration: what SAM, Eigen-SAM and Reverse-SAM do on real images, and SAM on its own edge of stability.

Digits with 20 % random training labels over five seeds, then full-batch training on all digits. Two minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path

from flatwise.experiments.arms import arms_of, pairs_of
from flatwise.experiments.comparison import Comparison, carry_out
from flatwise.experiments.full_batch import edge_arm
from flatwise.training import Settings

SEEDS = 5
METHODS = ("sgd", "sam", "eigen-sam", "reverse-sam")
SETTINGS = Settings(
    rho=0.1,
    alpha=0.2,
    every=10,
    data="digits",
    label_noise=0.2,
    model="mlp",
    widths=(128, 128),
    batch_size=64,
    epochs=40,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    probe_every=32,
)
# Odd distances between measurements see both sides of the swing, of period two, at the edge.
LR, RHO, STEPS, PROBE_EVERY = 0.2, 0.3, 1500, 45
GD_LR, GD_STEPS, GD_PROBE_EVERY = 1.0, 600, 21


def comparisons(folder: Path, seeds: int = SEEDS) -> dict[Path, Comparison]:
    """The two comparisons of the demonstration, with their folders; the long runs of the edge come first."""
    command = f"flatwise demo --seeds {seeds} --out {folder}"
    return {folder / "edge": full_batch(command), folder: mini_batch(command, seeds)}


def mini_batch(command: str, seeds: int) -> Comparison:
    """Four methods and the control of equal norm, on digits with 20 % random training labels."""
    arms = arms_of(METHODS, SETTINGS)
    title = "Digits with 20 % random training labels: SGD, SAM, Eigen-SAM, Reverse-SAM"
    return Comparison(title, arms, range(seeds), "sgd", pairs_of(arms, "sgd"), command, edge="edge")


def full_batch(command: str) -> Comparison:
    """GD, SAM and Eigen-SAM on the full batch, where each has an edge of stability."""
    sam = {"lr": LR, "rho": RHO, "steps": STEPS, "probe_every": PROBE_EVERY}
    arms = [
        edge_arm("eigen-sam", "Eigen-SAM", method="eigen-sam", alpha=0.2, every=10, **sam),
        edge_arm("sam", "SAM", method="sam", **sam),
        edge_arm("gd", "GD", method="sgd", lr=GD_LR, steps=GD_STEPS, probe_every=GD_PROBE_EVERY),
    ]
    title = "Full-batch training on digits: the edge of stability"
    return Comparison(title, arms[::-1], [0], "gd", [("sam", "gd"), ("eigen-sam", "sam")], command, kind="edge")


def demonstrate(folder: Path, seeds: int = SEEDS, workers: int | None = None) -> dict[str, str]:
    """Make the runs of the demonstration in `folder`; what is there already is kept. Returns what failed, and why."""
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {seeds}")
    return carry_out(comparisons(folder, seeds), workers)
