"""Training with plain SAM or gradient descent at a constant learning rate, and where its curvature is, beside the edges.

The protocol of arXiv 2309.12488: no momentum, no decay, no schedule; Hessian and gradient of the very batch that is trained on.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from flatwise import vectors as V
from flatwise.curvature import EigenPairs, EigenTracker, hessian
from flatwise.experiments.claims.claim import Values
from flatwise.methods import SAM, SGD
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.runs import replacing
from flatwise.tasks import build_model, load_data
from flatwise.theory import gd_edge, sam_edge
from flatwise.training.batches import Batches
from flatwise.training.setup import cross_entropy, squared_error

Batch = tuple[Tensor, Tensor]

CHECKPOINT = "checkpoint.pt"
LOSSES = {"squared-error": squared_error, "cross-entropy": cross_entropy}


def follow(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """Train with the learning rate and the rho of a cell, and measure every so many steps; continues where it was interrupted.

    Returns:
        A list for each of: the step, the training loss, the gradient norm, the largest eigenvalues of the Hessian, the
        residual of the first, both edges, and |cos| with the top eigenvector of the gradient and of the gradient at the
        displaced weights.
    """
    with torch.random.fork_rng(devices=[]):
        return _Following(preset, cell, seed, folder).run(progress)


@dataclass
class _Following:
    """One training.

    The preset names `data`, `model`, their options, `loss`, `batch_size` (0: all), `steps`, `measured` (steps between two
    measurements, odd, so that both sides of a swing with period two are seen), `eigenvalues` and `tol`.
    """

    preset: Values
    cell: Values
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        preset, cell = self.preset, self.cell
        task = load_data(preset["data"], seed=self.seed, **preset.get("data_options", {}))
        self.batches = Batches(task, preset["batch_size"], self.seed)
        layout = torch.channels_last if preset.get("channels_last") else torch.preserve_format
        model = build_model(preset["model"], task, self.seed, **preset.get("model_options", {}))
        self.model = model.to(memory_format=layout)
        self._criterion = LOSSES[preset["loss"]]
        method = SAM(rho=cell["rho"]) if cell["rho"] else SGD()
        base = torch.optim.SGD(self.model.parameters(), lr=cell["lr"])
        self.optimizer = SharpnessAware(base, method, model=self.model)
        self.tracker = EigenTracker(k=preset["eigenvalues"], tol=preset["tol"])
        self.records: list[Values] = []

    def run(self, progress: Progress) -> Values:
        """All steps, then a column for each quantity."""
        steps = self.preset["steps"]
        for step in range(self._resume(), steps):
            batch = self.batches.at(step)
            if step % self.preset["measured"] == 0:
                self._save(step)
                if (found := self._measured(batch)) is None:
                    break
                self.records.append({"step": step} | found)
            self.optimizer.step(partial(self._backward, batch))
            progress(step + 1, steps)
        return {name: [record[name] for record in self.records] for name in self.records[0]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        return self._criterion(model(batch[0]), batch[1])

    def _backward(self, batch: Batch) -> Tensor:
        loss = self.loss(self.model, batch)
        loss.backward()
        return loss

    def _measured(self, batch: Batch) -> Values | None:
        """On the batch of the coming step, at the weights it starts from; None where the training has diverged."""
        objective, lr, rho = Objective(self.model, self.loss, [batch]), self.cell["lr"], self.cell["rho"]
        loss, gradient = objective.value_and_gradient()
        norm = float(V.norm(gradient))
        if not math.isfinite(float(loss) + norm):
            return None
        pairs = self._pairs(objective)
        top = pairs.vectors[0]
        with objective.displaced() as place:
            place.to(gradient, rho / max(norm, 1e-12))
            perturbed = objective.gradient()
        return {
            "loss": float(loss),
            "gradient_norm": norm,
            "eigenvalues": list(pairs.values),
            "residual": float(pairs.residuals[0]),
            "edge": sam_edge(lr, rho, norm),
            "gd_edge": gd_edge(lr),
            "alignment_gradient": abs(float(V.cosine(gradient, top))),
            "alignment_perturbed_gradient": abs(float(V.cosine(perturbed, top))),
        }

    def _pairs(self, objective: Objective) -> EigenPairs:
        """A pair that has not converged says so by its residual, which is recorded."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="not converged")
            return self.tracker.update(hessian(objective))

    def _save(self, step: int) -> None:
        """Everything from which the training continues after so many steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / CHECKPOINT) as draft:
            torch.save(
                {
                    "step": step,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "tracker": self.tracker.state_dict(),
                    "records": self.records,
                },
                draft,
            )

    def _resume(self) -> int:
        """Load what is there; the number of steps already taken."""
        place = self.folder / CHECKPOINT
        if not place.exists():
            return 0
        known = torch.load(place, weights_only=True)
        self.model.load_state_dict(known["model"])
        self.optimizer.load_state_dict(known["optimizer"])
        self.tracker.load_state_dict(known["tracker"])
        self.records = known["records"]
        return known["step"]
