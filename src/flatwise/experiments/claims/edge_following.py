"""Training with plain SAM or gradient descent at a constant learning rate, and where its curvature is, beside the edges.

The protocol of arXiv 2309.12488: no momentum, no decay, no schedule; Hessian and gradient of the very batch that is trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch

from flatwise import vectors as V
from flatwise.curvature import EigenPairs
from flatwise.experiments.claims.claim import Values
from flatwise.experiments.claims.following import Batch, Following
from flatwise.methods import SAM, SGD
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.processes import Progress
from flatwise.tasks import build_model, load_data
from flatwise.theory import gd_edge, sam_edge
from flatwise.training.setup import cross_entropy, squared_error
from flatwise.vectors import Vector

LOSSES = {"squared-error": squared_error, "cross-entropy": cross_entropy}


def follow(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """Train with the learning rate and the rho of a cell, and measure every so many steps; continues where it was interrupted.

    The preset has `data`, `model`, their options, `loss`, and what `Following` wants.

    Returns:
        A list for each of: the step, the training loss, the gradient norm, the largest eigenvalues of the Hessian, the
        residual of the first, both edges, and |cos| with the top eigenvector of the gradient and of the gradient at the
        displaced weights.
    """
    with torch.random.fork_rng(devices=[]):
        return _BesideEdges(preset, cell, seed, folder).run(progress)


class _BesideEdges(Following):
    """SAM, or gradient descent where rho is 0."""

    def __init__(self, preset: Values, cell: Values, seed: int, folder: Path) -> None:
        task = load_data(preset["data"], seed=seed, **preset.get("data_options", {}))
        layout = torch.channels_last if preset.get("channels_last") else torch.preserve_format
        model = build_model(preset["model"], task, seed, **preset.get("model_options", {})).to(memory_format=layout)
        method = SAM(rho=cell["rho"]) if cell["rho"] else SGD()
        base = torch.optim.SGD(model.parameters(), lr=cell["lr"])
        optimizer = SharpnessAware(base, method, model=model)
        super().__init__(preset, cell, seed, folder, task, model, optimizer, LOSSES[preset["loss"]])

    def measure_and_step(
        self, objective: Objective, loss: float, gradient: Vector, pairs: EigenPairs, batch: Batch
    ) -> Values:
        lr, rho, norm, top = self.cell["lr"], self.cell["rho"], float(V.norm(gradient)), pairs.vectors[0]
        with objective.displaced() as place:
            place.to(gradient, rho / max(norm, 1e-12))
            perturbed = objective.gradient()
        self.step(batch)
        return {
            "loss": loss,
            "gradient_norm": norm,
            "eigenvalues": list(pairs.values),
            "residual": float(pairs.residuals[0]),
            "edge": sam_edge(lr, rho, norm),
            "gd_edge": gd_edge(lr),
            "alignment_gradient": abs(float(V.cosine(gradient, top))),
            "alignment_perturbed_gradient": abs(float(V.cosine(perturbed, top))),
        }
