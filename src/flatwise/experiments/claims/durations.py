"""How long the parts of a claim take, for the list of claims and the estimate of what remains."""

from __future__ import annotations

from collections.abc import Mapping

SECONDS: Mapping[str, float] = {
    "sam-edge-mlp": 100,
    "sam-edge-cnn": 220,
    "sam-edge-transformer": 80,
    "eigen-sam-edge": 18,
    "edges-of-other-methods": 12,
    "eigen-sam-training": 550,
    "third-order-sde": 120,
    "reverse-sam-and-egr": 4,
    "late-phase-sam": 4,
    "tilted-sam": 5,
    "stable-sam": 3,
    "noise-stability": 4,
    "universal-sam": 5,
    "free-eigenvector": 24,
    "flat-or-averaged": 85,
    "pac-bayes": 12,
    "layerwise-jacobian-alignment": 10,
    "margin-by-rescaling": 8,
    "tiny-subspaces": 30,
    "eigen-sam-accuracy": 55,
    "vit-finetuning": 45,
    "overhead": 50,
    "rho-alpha-study": 110,
    "base-optimizers": 4,
    "time-to-quality": 10,
}
"""Of one part of an experiment at the small scale, on one core, roughly. At other scales only their proportions count."""
