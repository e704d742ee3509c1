"""How long the parts of a claim take, for the estimate of what remains."""

from __future__ import annotations

from collections.abc import Mapping

SECONDS: Mapping[str, float] = {
    "sam-edge-mlp": 200,
    "sam-edge-cnn": 210,
    "sam-edge-transformer": 130,
    "eigen-sam-edge": 19,
    "edges-of-other-methods": 19,
    "eigen-sam-training": 450,
    "third-order-sde": 300,
    "reverse-sam-and-egr": 15,
    "late-phase-sam": 18,
    "tilted-sam": 30,
    "stable-sam": 18,
    "noise-stability": 20,
    "universal-sam": 12,
    "free-eigenvector": 42,
    "flat-or-averaged": 125,
    "pac-bayes": 20,
    "layerwise-jacobian-alignment": 24,
    "margin-by-rescaling": 30,
    "tiny-subspaces": 36,
    "eigen-sam-accuracy": 70,
    "vit-finetuning": 45,
    "overhead": 72,
    "rho-alpha-study": 120,
    "base-optimizers": 9,
    "time-to-quality": 45,
}
"""Of one part of an experiment at the small scale, on one core, roughly. Only proportions count: they serve other scales too."""
