"""What papers around SAM say of accuracy and flatness, on digits with wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flatwise.experiments.claims.claim import Claim, Criterion, Outcome, Values
from flatwise.experiments.claims.trainings import arm_trainings, difference, final, logarithm, panel, train_arms

MARGIN = 0.5
"""Points of test accuracy by which one method may be below another and still count as good: ours, no paper gives a number."""

_SHARED: Values = {"data": "digits", "label_noise": 0.4, "epochs": 40, "probe_every": 80}
_PROTOCOL = (
    "Digits (1,000 for training, 40 % of them with random labels; 797 for testing), a fully connected ReLU network, SGD with "
    "momentum 0.9, learning rate 0.05 on a cosine, 40 epochs. Hyper-parameters were fixed beforehand, none is tuned: "
)
_POINTS = "Test accuracy at the end, in points, of the first less that of the second."
_RATIO = "Logarithm to base 2 of the ratio of the two at the end."


def _scales(arms: Values) -> dict[str, Values]:
    """There is no scale of the papers: each of them has another one, and hyper-parameters of its own."""
    smoke = _SHARED | {"subset": 64, "epochs": 2, "probe_every": 0}
    return {"smoke": {"shared": smoke, "arms": arms}, "small": {"shared": _SHARED, "arms": arms}}


def _claim(
    name: str,
    statement: str,
    source: str,
    protocol: str,
    arms: Values,
    criteria: Callable[[Sequence[Sequence[Values]]], list[Criterion]],
) -> Claim:
    def judge(preset: Values, seeds: Sequence[Sequence[Values]]) -> Outcome:
        del preset
        panels = [
            panel("Test accuracy", seeds, "test_accuracy", "test accuracy"),
            panel("Test loss", seeds, "test_loss", "test loss", "y"),
            panel("Training loss", seeds, "train_loss", "training loss", "y"),
            panel("Top eigenvalue", seeds, "top_eigenvalue", "top eigenvalue", "y"),
        ]
        return Outcome(criteria(seeds), panels)

    numbers: dict[str, Any] = {"scales": _scales(arms), "seeds": {"smoke": 2, "small": 10}}
    return Claim(
        name=name,
        statement=statement,
        source=source,
        protocol=_PROTOCOL + protocol,
        measure=train_arms,
        trainings=arm_trainings,
        judge=judge,
        **numbers,
    )


_points, _top, _trace, _test_loss = (
    final("test_accuracy", 100.0),
    logarithm("top_eigenvalue"),
    logarithm("trace"),
    final("test_loss"),
)

REVERSE_SAM_AND_EGR = _claim(
    "reverse-sam-and-egr",
    "SAM's test loss is below those of Reverse-SAM and of explicit gradient regularisation (EGR), its second-order theory.",
    "arXiv 2501.12666, appendix (page 13)",
    "All three with rho 0.1.",
    {
        "SAM": {"method": "sam", "rho": 0.1},
        "Reverse-SAM": {"method": "reverse-sam", "rho": 0.1},
        "EGR": {"method": "gradient-norm", "rho": 0.1},
    },
    lambda seeds: [
        difference("SAM less Reverse-SAM", "Test loss at the end.", seeds, "SAM", "Reverse-SAM", _test_loss, most=0.0),
        difference("SAM less EGR", "Test loss at the end.", seeds, "SAM", "EGR", _test_loss, most=0.0),
    ],
)

LATE_PHASE_SAM = _claim(
    "late-phase-sam",
    f"SAM in the last quarter of training is flatter and more accurate than SGD, and within {MARGIN} points of SAM all the time.",
    "arXiv 2410.10373",
    "SAM with rho 0.1, from three quarters of the steps on in the late arm.",
    {
        "SGD": {"method": "sgd"},
        "SAM": {"method": "sam", "rho": 0.1},
        "late SAM": {"method": "late-sam", "rho": 0.1, "hyper": ["start=0.75"]},
    },
    lambda seeds: [
        difference("late SAM less SGD", _POINTS, seeds, "late SAM", "SGD", _points, least=0.0),
        difference("late SAM less SAM", _POINTS, seeds, "late SAM", "SAM", _points, least=-MARGIN),
        difference("late SAM to SGD, top eigenvalue", _RATIO, seeds, "late SAM", "SGD", _top, most=0.0),
    ],
)

TILTED_SAM = _claim(
    "tilted-sam",
    "Tilted SAM is more accurate and flatter than SAM.",
    "arXiv 2410.22656",
    "Both with rho 0.1; tilted SAM with three samples at distance 2 rho, tilt 1: six evaluations a step against two.",
    {"SAM": {"method": "sam", "rho": 0.1}, "tilted SAM": {"method": "tsam", "rho": 0.1, "hyper": ["radius=2.0"]}},
    lambda seeds: [
        difference("tilted SAM less SAM", _POINTS, seeds, "tilted SAM", "SAM", _points, least=0.0),
        difference("top eigenvalue", _RATIO, seeds, "tilted SAM", "SAM", _top, most=0.0),
    ],
)

STABLE_SAM = _claim(
    "stable-sam",
    "Renormalised to the norm of the gradient, SAM tolerates a learning rate at which SAM itself does worse.",
    "arXiv 2401.07250",
    "Both with rho 0.2 and learning rate 0.2.",
    {"SAM": {"method": "sam", "rho": 0.2, "lr": 0.2}, "stable SAM": {"method": "ssam", "rho": 0.2, "lr": 0.2}},
    lambda seeds: [difference("stable SAM less SAM", _POINTS, seeds, "stable SAM", "SAM", _points, least=0.0)],
)

NOISE_STABILITY = _claim(
    "noise-stability",
    "Two-point noise stability optimisation ends with a smaller trace and top eigenvalue of the Hessian than SGD and than SAM.",
    "arXiv 2306.08553",
    "NSO with standard deviation 0.02 on each weight, SAM with rho 0.1: the same two evaluations a step.",
    {"SGD": {"method": "sgd"}, "SAM": {"method": "sam", "rho": 0.1}, "NSO": {"method": "nso", "rho": 0.02}},
    lambda seeds: [
        difference(f"NSO to {other}, {what}", _RATIO, seeds, "NSO", other, number, most=0.0)
        for other in ("SGD", "SAM")
        for what, number in (("trace", _trace), ("top eigenvalue", _top))
    ],
)

UNIVERSAL_SAM = _claim(
    "universal-sam",
    "Against SGD Trace-SAM lowers the trace, and Frob-SAM the top eigenvalue, which the Frobenius norm bounds.",
    "arXiv 2406.03682",
    "Frob-SAM with rho 0.01 and strength 0.005, as in the code for a small task; Trace-SAM with rho 2, which is ours: the norm "
    "of its displacement. Frob-SAM's own sharpness is the Frobenius norm, for which the top eigenvalue stands in.",
    {
        "SGD": {"method": "sgd"},
        "Trace-SAM": {"method": "trace-sam", "rho": 2.0},
        "Frob-SAM": {"method": "frob-sam", "rho": 0.01},
    },
    lambda seeds: [
        difference("Trace-SAM to SGD, trace", _RATIO, seeds, "Trace-SAM", "SGD", _trace, most=0.0),
        difference("Frob-SAM to SGD, top eigenvalue", _RATIO, seeds, "Frob-SAM", "SGD", _top, most=0.0),
    ],
)

GENERALISATION = (REVERSE_SAM_AND_EGR, LATE_PHASE_SAM, TILTED_SAM, STABLE_SAM, NOISE_STABILITY, UNIVERSAL_SAM)
