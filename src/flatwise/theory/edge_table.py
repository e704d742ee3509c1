"""The table of all methods' edges, for the documentation: numbers computed, reasons in words."""

from __future__ import annotations

import math
from typing import Any

from flatwise import methods
from flatwise.theory.linearised import method_edge

ALIGNED = 0.5
"""The alignment of the second column of numbers."""

WITH_MOMENTUM = 0.9
"""For methods that need it."""

WORDS = {
    "sgd": "`2 / lr`",
    "sam": "`sam_edge`",
    "usam": "`usam_edge`, whatever the gradient",
    "asam": "SAM's at `rho * (weight + eta)`, here for weights of size 1",
    "eigen-sam": "`eigen_sam_edge`; a kick along the eigenvector, so none without alignment",
    "reverse-sam": "`norm / rho`, where steps begin to go uphill: not held, since nothing turns back",
    "gradient-norm": "SAM's: on a quadratic the two are the same",
    "eigenvalue-penalty": "gradient descent's: a quadratic's eigenvalues have no slope; it lowers the curvature itself",
    "tsam": "drawn; SAM's in the limit of many weights and a small radius",
    "ssam": "SAM's for small components, rising to `2 / lr` with the alignment",
    "trace-sam": "gradient descent's: what is drawn does not hang on the component",
    "det-sam": "drawn, and goes by differences of losses",
    "frob-sam": "drawn; in the mean USAM's at rho = strength",
    "nso": "gradient descent's: the noise cancels",
    "x-sam": "SAM's at `lr * (1 - alpha)`; none for alpha 1. Other eigenvectors stay at SAM's",
    "gsam": "SAM's at `rho * (1 + alpha)` for small components, rising with the alignment",
    "wsam": "SAM's at `rho * gamma / (1 - gamma)`",
    "friendly-sam": "with sigma 1 nothing is left of a steady gradient; below, SAM's at a rho with the factor "
    "`(1 + sigma * (1 - decay) / (1 + decay)) / (1 - sigma)` for small components, rising with the alignment",
    "looksam": "a kick of the gradient's size along the vector that is remembered",
    "momentum-sam": "`2 (1 + momentum) / (lr + 2 rho (1 - momentum) / norm)` for small components, here with momentum 0.9",
    "ae-sam": "decides by the gradient's norm: SAM's or gradient descent's",
    "esam": "drawn; in the mean SAM's",
    "late-sam": "SAM's, once it has begun",
    "interval-sam": "where the product of the multipliers of a period, here of 5 steps, is 1 or -1",
    "dom-sgd": "gradient descent's",
    "bulk-sgd": "leaves the eigenvector alone: the largest eigenvalue left in has gradient descent's",
    "prgd": "goes by the value of the loss, and rescales the weights",
}
"""What each method's edge is, by the method's name."""

_DRAWN = ("tsam", "det-sam", "frob-sam", "esam")


def edge_table(lr: float = 0.2, rho: float = 0.1, gradient_norm: float = 0.02) -> str:
    """A Markdown table of all methods, at a learning rate, rho and gradient norm, and their defaults otherwise."""
    head = f"| method | edge | at alignment {ALIGNED:g} | what it is |\n|---|---|---|---|\n"
    return head + "".join(_row(name, lr, rho, gradient_norm) for name in methods.names())


def _row(name: str, lr: float, rho: float, norm: float) -> str:
    small, aligned = (_number(name, lr, rho, norm, alignment) for alignment in (0.0, ALIGNED))
    return f"| `{name}` | {small} | {aligned} | {WORDS[name]} |\n"


def _number(name: str, lr: float, rho: float, norm: float, alignment: float) -> str:
    """As text; "none" where there is no edge, and nothing where a number would need draws, or an alignment has none."""
    if name in _DRAWN:
        return ""
    hyper: dict[str, Any] = {"rho": rho} if "rho" in methods.settings(name) else {}
    method = methods.by_name(name, **hyper)
    momentum = WITH_MOMENTUM if "momentum" in method.needs else 0.0
    try:
        edge = method_edge(method, lr, norm, momentum, alignment=alignment)
    except ValueError:
        return "" if alignment else "none"
    return "none" if math.isinf(edge.curvature) else f"{edge.curvature:.3g}"
