"""Can Eigen-SAM's eigenvector be had for free? The runs behind docs/free-eigenvector.md.

    python -m flatwise.experiments.free_eigenvector --out free-eigenvector --dry-run
    python -m flatwise.experiments.free_eigenvector --out free-eigenvector

One line of JSON per network, arm and seed goes to `runs.jsonl` as it is known; what is there is not made again. Then the
table is printed and written to `table.md`.
"""

from __future__ import annotations

import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.curvature import EigenTracker, hessian
from flatwise.experiments.free_eigenvector_networks import PROBLEMS, loss_of
from flatwise.experiments.free_eigenvector_table import table
from flatwise.methods import SAM, At, EigenSAM, Evaluation, Method, State
from flatwise.methods.eigenvectors import EIGENVECTOR, SAME_IN_EVALUATION
from flatwise.modules import Mode, measuring
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.vectors import Vector

ALPHA = 0.5
PLACES = (0.31, 0.54, 0.79, 1.0)
"""Where |cos| is measured, as shares of the steps: at no fixed distance from the refreshes."""

TOL = 0.1
"""Residual of the exact eigenvector, relative to its eigenvalue."""


@dataclass(frozen=True)
class Watched(EigenSAM):
    """Eigen-SAM, and the vector with which it displaced last."""

    seen: list[Vector] = field(default_factory=list[Vector], compare=False, repr=False)

    def _tilted(self, gradient: Vector, state: State) -> At:
        self.seen[:] = [state.vectors[EIGENVECTOR]]
        return super()._tilted(gradient, state)


@dataclass(frozen=True)
class FirstForm(Watched):
    """The free eigenvector that takes every difference for a product, also where evaluation mode differs."""

    def _look(self, here: Evaluation, state: State) -> Any:
        del here
        state.numbers[SAME_IN_EVALUATION] = 1.0
        yield from ()


ARMS: dict[str, Callable[[float], Method]] = {
    "sam": lambda rho: SAM(rho),
    "every-1": lambda rho: Watched(rho, ALPHA, every=1, iterations=1),
    "every-10": lambda rho: Watched(rho, ALPHA, every=10, iterations=5),
    "every-100": lambda rho: Watched(rho, ALPHA, every=100, iterations=5),
    "first-form": lambda rho: FirstForm(rho, ALPHA, source="free"),
    "free": lambda rho: Watched(rho, ALPHA, source="free"),
    "sam-equal-norm": lambda rho: SAM(rho),
}
"""The last takes as rho the mean displacement norm of every-10 with the same seed."""

COSTS = {"every-1": 4.0, "every-10": 2.6, "every-100": 2.06, "free": 2.2}
"""Evaluations a step, at most, where they are not two."""


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        network, arm, seed: which.
        rho: its radius.
        cosines: |cos| of the vector with that of the training data, at the places.
        batch_cosines: likewise, with that of the step's batch.
        training_mode_cosine: likewise, with that of the training data in training mode, after the last step; None where it is
            the same.
        top_eigenvalue, training_mode_eigenvalue: of the training data at the end.
        test_accuracy: between 0 and 1.
        evaluations: a step, counted.
        displacement_norm: the mean.
        seconds: of the training alone.
    """

    network: str
    arm: str
    seed: int
    rho: float
    cosines: list[float]
    batch_cosines: list[float]
    training_mode_cosine: float | None
    top_eigenvalue: float
    training_mode_eigenvalue: float | None
    test_accuracy: float
    evaluations: float
    displacement_norm: float
    seconds: float


class Trial:
    """One run while it is made: of the network's own epochs and rho where no others are given."""

    def __init__(self, network: str, arm: str, seed: int, rho: float | None = None, epochs: int | None = None) -> None:
        self.key, self.seed = (network, arm, seed), seed
        problem = PROBLEMS[network](seed)
        self.problem = replace(problem, epochs=problem.epochs if epochs is None else epochs)
        self.rho = self.problem.rho if rho is None else rho
        self.method = ARMS[arm](self.rho)
        self.model = self.problem.model.train()
        base = torch.optim.SGD(self.model.parameters(), lr=self.problem.lr, momentum=0.9, weight_decay=5e-4)
        self.optimizer = SharpnessAware(base, self.method, model=self.model)
        self.trackers = {name: EigenTracker(1, tol=TOL, seed=seed) for name in ("eval", "train", "batch")}
        self.cosines: list[float] = []
        self.batch_cosines: list[float] = []

    def run(self, progress: Progress = lambda _step, _steps: None) -> Result:
        """Train, and measure on the way; `progress` is told after each step how many there have been, and of how many."""
        steps, spent, moved, seconds = self.problem.steps, 0.0, 0.0, 0.0
        places = {math.ceil(place * steps) - 1 for place in PLACES}
        for step in range(steps):
            exact = self._exact(step) if step in places and isinstance(self.method, Watched) else None
            started = time.perf_counter()
            numbers = self._step(step, 0.5 * (1 + math.cos(math.pi * step / steps)))
            seconds += time.perf_counter() - started
            spent, moved = spent + numbers["evaluations"], moved + numbers["displacement_norm"]
            if exact is not None:
                self.cosines.append(self._cosine(exact[0]))
                self.batch_cosines.append(self._cosine(exact[1]))
            progress(step + 1, steps)
        return self._result(spent / steps, moved / steps, seconds)

    def _step(self, step: int, factor: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.problem.lr * factor
        inputs, targets = self.problem.at(step, self.seed)
        for p in self.optimizer.passes():
            p.backward(loss_of(self.model(inputs), targets))
        self.optimizer.step()
        return self.optimizer.diagnostics

    def _result(self, evaluations: float, displacement: float, seconds: float) -> Result:
        top, _ = self._top("eval", self._measured(), "eval")
        differs = any(
            isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)) for module in self.model.modules()
        )
        training, vector = self._top("train", self._measured(), "train") if differs else (None, None)
        cosine = self._cosine(vector) if vector and isinstance(self.method, Watched) else None
        return Result(
            *self.key,
            rho=self.rho,
            cosines=self.cosines,
            batch_cosines=self.batch_cosines,
            training_mode_cosine=cosine,
            top_eigenvalue=top,
            training_mode_eigenvalue=training,
            test_accuracy=self._accuracy(),
            evaluations=evaluations,
            displacement_norm=displacement,
            seconds=seconds,
        )

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _exact(self, step: int) -> tuple[Vector, Vector]:
        batch = [self.problem.at(step, self.seed)]
        return self._top("eval", self._measured(), "eval")[1], self._top("batch", batch, "eval")[1]

    def _measured(self) -> list[tuple[Tensor, Tensor]]:
        """Fixed training samples, in batches as in training."""
        chosen = slice(self.problem.measured)
        inputs, targets = self.problem.inputs[chosen], self.problem.targets[chosen]
        return list(zip(inputs.split(128), targets.split(128), strict=True))

    def _top(self, tracker: str, data: Sequence[tuple[Tensor, Tensor]], mode: Mode) -> tuple[float, Vector]:
        objective = Objective(self.model, lambda model, batch: loss_of(model(batch[0]), batch[1]), data, mode=mode)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="not converged")
            pairs = self.trackers[tracker].update(hessian(objective))
        return float(pairs.values[0]), pairs.vectors[0]

    def _cosine(self, exact: Vector) -> float:
        assert isinstance(self.method, Watched)
        return abs(float(V.cosine(self.method.seen[0], exact)))

    @torch.no_grad()
    def _accuracy(self) -> float:
        with measuring(self.model, "eval"):
            right = self.model(self.problem.test_inputs).argmax(-1) == self.problem.test_targets
        return right.float().mean().item()


def main(
    out: Path = Path("free-eigenvector"),
    networks: tuple[str, ...] = tuple(PROBLEMS),
    seeds: int = 5,
    first_seed: int = 0,
    dry_run: bool = False,
) -> None:
    """Make the runs that are not there yet, then the table.

    Args:
        out: the folder of the results.
        networks: of digits, cnn, cnn-batchnorm, transformer.
        seeds: how many.
        first_seed: the first of them.
        dry_run: say what would be done, with the time that it takes here, and do nothing.
    """
    torch.set_num_threads(1)
    wanted = [(n, a, s) for s in range(first_seed, first_seed + seeds) for n in networks for a in arms_of(n)]
    if dry_run:
        print(forecast(wanted))
        return
    out.mkdir(parents=True, exist_ok=True)
    made = read(out)
    for network, arm, seed in wanted:
        if (network, arm, seed) not in made:
            result = Trial(network, arm, seed, _rho(made, network, arm, seed)).run()
            made[network, arm, seed] = asdict(result)
            with (out / "runs.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(result)) + "\n")
    text = table(list(made.values()))
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)


def arms_of(network: str) -> list[str]:
    """All arms; the first form alone where it is another one than free."""
    return [arm for arm in ARMS if arm != "first-form" or network == "cnn-batchnorm"]


def read(out: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The runs that are there, by network, arm and seed."""
    path = out / "runs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines]
    return {(run["network"], run["arm"], run["seed"]): run for run in runs}


def forecast(wanted: Sequence[tuple[str, str, int]]) -> str:
    """How many runs and evaluations, and about how many minutes: from ten steps of SAM on each network."""
    lines: list[str] = []
    minutes = 0.0
    for network in dict.fromkeys(n for n, _, _ in wanted):
        arms = [arm for n, arm, _ in wanted if n == network]
        steps, step = PROBLEMS[network](0).steps, _seconds_of_a_step(network)
        evaluations = sum(COSTS.get(arm, 2.0) for arm in arms) * steps
        minutes += evaluations * step / 2 / 60
        lines.append(f"{network}: {len(arms)} runs of {steps} steps, {evaluations:,.0f} evaluations")
    return "\n".join([*lines, f"about {minutes:.0f} minutes of training, and about as many of measuring"])


def _seconds_of_a_step(network: str) -> float:
    trial = Trial(network, "sam", 0)
    times: list[float] = []
    for step in range(10):
        started = time.perf_counter()
        trial._step(step, 1.0)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _rho(made: dict[tuple[str, str, int], dict[str, Any]], network: str, arm: str, seed: int) -> float | None:
    return made[network, "every-10", seed]["displacement_norm"] if arm == "sam-equal-norm" else None


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
