"""SAM runs on its own edge of stability, far below that of gradient descent (Long & Bartlett, arXiv 2309.12488).

    python -m flatwise.experiments.edge --out edge

Full-batch training on digits with SAM at two settings, and with gradient descent as the control: at the smallest of three
learning rates with which its top eigenvalue arrives at 2/lr. Prints, per run, the medians over the second half of the steps
of top eigenvalue / edge and of top eigenvalue / (2/lr), and writes them to `edge.json`. Some five minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from flatwise.experiments.comparison import Arm, Comparison, carry_out, run_folder
from flatwise.experiments.full_batch import edge_arm
from flatwise.runs import Run, write_json

SAM_SETTINGS = ((0.2, 0.3), (0.5, 0.1))
"""Learning rates and rhos."""

GD_RATES = (1.0, 2.0, 4.0)
SAM_STEPS, GD_STEPS = 1500, 6000
# At the edge the weights swing with period two, and the gradient norm with them: measuring every so many steps, an odd number,
# sees both sides of the swing. Even steps alone gave ratios up to 2 % larger than odd ones.
SAM_PROBES, GD_PROBES = 25, 75
ARRIVED = 0.9
"""Gradient descent has arrived when its top eigenvalue reaches this share of 2/lr."""


@dataclass(frozen=True)
class Ratios:
    """One run: medians over the second half of its steps, and the first step at which it was at its edge (None: never)."""

    arm: str
    lr: float
    rho: float | None
    seed: int
    to_edge: float
    to_gd_edge: float
    arrived: int | None
    measurements: int

    def __str__(self) -> str:
        arrival = "never at its edge" if self.arrived is None else f"at its edge from step {self.arrived}"
        place = (
            f"{self.arm:20} seed {self.seed}  top eigenvalue / edge {self.to_edge:.3f}  / (2/lr) {self.to_gd_edge:.3f}"
        )
        return f"{place}  ({self.measurements} measurements, {arrival})"


def measure_edges(out: Path, seeds: int = 3, workers: int | None = None) -> list[Ratios]:
    """Make the runs in `out`, where what is there already is kept, and measure how close they come to their edges.

    Raises:
        RuntimeError: a run failed; the message says which and why.
    """
    sam = [sam_arm(lr, rho) for lr, rho in SAM_SETTINGS]
    found: list[Ratios] = []
    for lr in GD_RATES:
        found = _carried_out(out, [gd_arm(lr), *sam], seeds, workers)
        if all(ratios.arrived is not None for ratios in found if ratios.rho is None):
            break
    write_json(out / "edge.json", {"runs": [asdict(ratios) for ratios in found]})
    return found


def sam_arm(lr: float, rho: float) -> Arm:
    """SAM on the full batch."""
    name = f"sam-lr{lr:g}-rho{rho:g}"
    return edge_arm(
        name, f"SAM lr {lr:g} rho {rho:g}", method="sam", lr=lr, rho=rho, steps=SAM_STEPS, probe_every=SAM_PROBES
    )


def gd_arm(lr: float) -> Arm:
    """Gradient descent on the full batch, long enough to arrive."""
    return edge_arm(f"gd-lr{lr:g}", f"GD lr {lr:g}", method="sgd", lr=lr, steps=GD_STEPS, probe_every=GD_PROBES)


def ratios_of(run: Run, arm: str) -> Ratios:
    """What one full-batch run shows."""
    probes = [r for r in run.metrics() if r["kind"] == "probe" and "edge" in r and "top_eigenvalue" in r]
    late = [r for r in probes if r["step"] >= probes[-1]["step"] / 2]
    arrived = (r["step"] for r in probes if r["top_eigenvalue"] >= ARRIVED * r["edge"])
    return Ratios(
        arm=arm,
        lr=run.config["lr"],
        rho=run.config["rho"],
        seed=run.config["seed"],
        to_edge=median(r["top_eigenvalue"] / r["edge"] for r in late),
        to_gd_edge=median(r["top_eigenvalue"] / r["gd_edge"] for r in late),
        arrived=next(arrived, None),
        measurements=len(late),
    )


def _carried_out(out: Path, arms: Sequence[Arm], seeds: int, workers: int | None) -> list[Ratios]:
    title = "Full-batch training on digits: SAM on its own edge of stability"
    pairs = [(arm.name, arms[0].name) for arm in arms[1:]]
    command = f"python -m flatwise.experiments.edge --seeds {seeds} --out {out}"
    comparison = Comparison(title, arms, range(seeds), arms[0].name, pairs, command, kind="edge")
    if failures := carry_out({out: comparison}, workers):
        raise RuntimeError("; ".join(f"{name} failed: {reason}" for name, reason in failures.items()))
    return [ratios_of(Run.open(out / run_folder(arm.name, seed)), arm.label) for arm in arms for seed in range(seeds)]


def main(out: Path = Path("edge"), seeds: int = 3, workers: int | None = None) -> None:
    """Measure SAM against its edge of stability, and gradient descent against 2/lr.

    Args:
        out: the folder of the runs; what is in it already is kept.
        seeds: how many seeds.
        workers: processes at a time; default: one per core.
    """
    for ratios in measure_edges(out, seeds, workers):
        print(ratios)
    print(f"figures in {out / 'edge.json'}; for a page: flatwise report {out}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
