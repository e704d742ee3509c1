"""What Eigen-SAM's paper says of accuracy: its table of data sets and networks, and the fine-tuning of a vision transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from flatwise.experiments.claims import paper_presets
from flatwise.experiments.claims.claim import Claim, Criterion, Heat, Outcome, Values
from flatwise.experiments.claims.stages import stage_of
from flatwise.experiments.claims.trainings import train_arms
from flatwise.processes import Progress
from flatwise.training import TrainConfig, train

SGD, SAM, EIGEN, CONTROL = _LABELS = ("SGD", "SAM", "Eigen-SAM", "SAM at equal norm")

VALIDATION = 0.1
"""The share of the training data on which alpha is chosen."""


def arms(preset: Values, cell: Values, alpha: float) -> Values:
    """The settings of each arm of a cell by label."""
    radius = {"rho": cell["rho"]}
    eigen = {"method": "eigen-sam", "alpha": alpha} | radius | preset["eigen"]
    return {SGD: {"method": "sgd"}, SAM: {"method": "sam"} | radius, EIGEN: eigen, CONTROL: {"method": "sam"}}


def settings(preset: Values, cell: Values) -> Values:
    """The settings that all arms of a cell share."""
    own = {name: value for name, value in cell.items() if name not in ("rho", "alphas")}
    return preset["shared"] | own


def trainings(preset: Values, cell: Values, seed: int = 0) -> list[TrainConfig]:
    """The settings of all trainings of a cell on its own data, those that choose alpha first."""
    on_part = [_choosing(preset, cell, alpha, seed) for alpha in cell["alphas"]] if len(cell["alphas"]) > 1 else []
    own = arms(preset, cell, cell["alphas"][0]).values()
    return on_part + [TrainConfig.from_dict(settings(preset, cell) | arm | {"seed": seed}) for arm in own]


def _measure(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """Train the network to start from, where there is one; choose alpha, where there is a choice; train all arms with it."""
    cell = cell | _start(preset, cell, seed, folder, progress)
    before = len(trainings(preset, cell)) - len(_LABELS)
    alpha = _chosen(preset, cell, seed, folder, progress)
    whole = {"shared": settings(preset, cell), "arms": arms(preset, cell, alpha), "norm_of": {CONTROL: EIGEN}}
    return train_arms(whole, {}, seed, folder, _after(progress, before)) | {"alpha": alpha}


def _after(progress: Progress, before: int) -> Progress:
    """Tells the progress of all arms, in steps, where so many trainings went before them."""

    def tell(done: int, total: int) -> None:
        each = total // len(_LABELS)
        progress(before * each + done, before * each + total)

    return tell


def _start(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> Values:
    """The run to start from, trained now; nothing where the preset has none. Its steps come before all others are told."""
    if "before" not in preset:
        return {}
    return {"pretrained": str(train(_before(preset, cell, seed), folder / "before").path)}


def _before(preset: Values, cell: Values, seed: int) -> TrainConfig:
    return TrainConfig.from_dict(preset["before"] | {"model": cell["model"], "seed": seed})


def _all_trainings(preset: Values, cell: Values) -> list[TrainConfig]:
    """Also the one that makes the network to start from."""
    first = [_before(preset, cell, seed=0)] if "before" in preset else []
    return first + trainings(preset, cell)


def _choosing(preset: Values, cell: Values, alpha: float, seed: int) -> TrainConfig:
    """The settings of Eigen-SAM with one alpha, where a part of the data is held out."""
    eigen = arms(preset, cell, alpha)[EIGEN] | {"validation": VALIDATION, "seed": seed}
    return TrainConfig.from_dict(settings(preset, cell) | eigen)


def _chosen(preset: Values, cell: Values, seed: int, folder: Path, progress: Progress) -> float:
    """The alpha that is best on samples held out of the training data."""
    alphas, number = cell["alphas"], len(cell["alphas"])
    if number == 1:
        return alphas[0]
    found: dict[float, float] = {}
    for i, alpha in enumerate(alphas):
        tell = stage_of(progress, i, number + len(_LABELS))
        run = train(_choosing(preset, cell, alpha, seed), folder / f"alpha-{alpha}", progress=tell)
        found[alpha] = run.summary.get("validation_accuracy", -math.inf)
    return max(alphas, key=lambda alpha: found[alpha])


def _points(arm: Values) -> float:
    """Test accuracy at the end; NaN where the training diverged."""
    return 100 * arm["summary"].get("test_accuracy", math.nan)


def _judge(preset: Values, seeds: Sequence[Sequence[Values]]) -> Outcome:
    """Differences of the mean over cells decide; what each cell has stands beside them."""
    names = [_named(cell) for cell in preset["cells"]]
    means = {label: [fmean(_points(cell[label]) for cell in cells) for cells in seeds] for label in _LABELS}
    criteria = [
        _less("all cells", means, EIGEN, SAM, least=0.0),
        _less("all cells", means, EIGEN, SGD, least=0.0),
        _less("all cells", means, EIGEN, CONTROL, decisive=False),
        _less("all cells", means, SAM, SGD, decisive=False),
    ]
    table: list[list[float]] = []
    for number, name in enumerate(names):
        points = {label: [_points(cells[number][label]) for cells in seeds] for label in _LABELS}
        criteria += [_accuracy(name, label, points[label]) for label in _LABELS]
        criteria += [_less(name, points, EIGEN, other, decisive=False) for other in (SAM, SGD)]
        table.append([fmean(points[label]) - fmean(points[SGD]) for label in _LABELS])
    title = "Test accuracy at the end, less that of SGD"
    heat = Heat(title, "arm", "network and data", list(_LABELS), names, table, "points, mean over seeds", middle=0.0)
    return Outcome(criteria, [heat], [_alphas(names, seeds)])


def _named(cell: Values) -> str:
    of = f", {cell['subset']} images" if "subset" in cell else ""
    return f"{cell['model']} on {cell['data']}{of}"


def _less(
    where: str,
    points: dict[str, list[float]],
    one: str,
    other: str,
    least: float | None = None,
    *,
    decisive: bool = True,
) -> Criterion:
    values = [a - b for a, b in zip(points[one], points[other], strict=True)]
    meaning = "Test accuracy at the end in points, of the first less that of the second, seed by seed."
    return Criterion(f"{where}: {one} less {other}", meaning, values, least, decisive=decisive)


def _accuracy(where: str, label: str, values: list[float]) -> Criterion:
    return Criterion(f"{where}: {label}", "Test accuracy at the end, in points.", values, decisive=False)


def _alphas(names: Sequence[str], seeds: Sequence[Sequence[Values]]) -> str:
    """A sentence on the alphas that were used."""
    columns = [", ".join(f"{cells[i]['alpha']:g}" for cells in seeds) for i in range(len(names))]
    used = [f"{name} {column}" for name, column in zip(names, columns, strict=True)]
    return f"Alpha, seed by seed: {'; '.join(used)}."


# --- the table --------------------------------------------------------------------------------------------------------

_DECIDES = (
    "What decides is the test accuracy at the end in the mean over cells, of Eigen-SAM less that of another arm, seed by "
    "seed: the statement puts it above 0 and gives no margin. Single cells have too few seeds for a verdict and only "
    "accompany it. SAM also runs at Eigen-SAM's mean displacement norm, which is longer than rho. "
)

_PROTOCOL = (
    "At the paper's scale: CIFAR-10, CIFAR-100, Fashion-MNIST and SVHN with ResNet-18, ResNet-50 and WRN-28-10; batch "
    "256, 200 epochs, SGD with momentum 0.9, learning rate 0.1 (SVHN 0.01) on a cosine, crops and flips (no flips on "
    "SVHN); alpha chosen from 0.05, 0.1 and 0.2 on a tenth of the training data, for each seed anew, then all arms on "
    "all data; an eigenvector every 100 steps by 5 power iterations. Not recovered and chosen by us: rho (0.1 on "
    "CIFAR-100 as in the authors' log, elsewhere 0.05, their code's default), weight decay (5e-4 as in the code; the "
    "paper is quoted with 5e-5), the number of seeds, that the accuracy is that of the last epoch. Known to differ "
    "from the code: the cosine falls with every step, the last smaller batch of an epoch is kept, the first "
    "eigenvector is found at step 0 (the code begins with un-normalised SAM) and the next ones every 100 steps of the "
    "run, power iterations start at the previous vector and a tenth of the gradient, the first one at the gradient and "
    "a tenth of noise (the code: at the previous vector alone, and at noise), Hessian-vector products are differences of "
    "gradients, crops are padded by an eighth of the side (28 pixels: by 3) and with the mean colour, and CIFAR-10 is "
    "divided by its pixels' standard deviation (0.247 ...), not by the 0.2023 ... of the code. "
    "At the small scale: 500 images of CIFAR-10 for 28 epochs, 1,000 of Fashion-MNIST for 14 "
    "and 300 digits for 40, networks of the same kinds (cnn6: convolutions with BatchNorm; wrn-10-1: the smallest Wide "
    "ResNet), batch 32, no augmentation, learning rate 0.05, rho 0.1 as in the authors' log, alpha 0.2, an eigenvector "
    "every 20 steps. Pilots with seeds 100 and 101 looked at SGD and SAM, and only at whether they fit their training "
    "data: batch, epochs and number of images come from there. Nothing is tuned for accuracy."
)

_SMALL: Values = {
    "shared": {"batch_size": 32, "curvature": False, "probe_every": 0},
    "eigen": {"every": 20, "iterations": 5},
    "cells": [
        {"data": data, "model": model, "lr": 0.05, "rho": 0.1, "alphas": [0.2]} | own
        for data, own in (
            ("cifar10", {"subset": 500, "epochs": 28}),
            ("fashion-mnist", {"subset": 1000, "epochs": 14}),
            ("digits", {"subset": 300, "epochs": 40}),
        )
        for model in ("cnn6", "wrn-10-1")
    ],
}

_SMOKE: Values = _SMALL | {
    "cells": [_SMALL["cells"][-2] | {"subset": 80, "epochs": 1, "alphas": [0.1, 0.2]}],
}

EIGEN_SAM_ACCURACY = Claim(
    name="eigen-sam-accuracy",
    statement="Eigen-SAM's test accuracy is above those of SAM and SGD, in the mean over data sets and networks.",
    source="arXiv 2501.12666, its table of accuracies; SAM at Eigen-SAM's displacement norm is our control",
    protocol=_DECIDES + _PROTOCOL,
    scales={"smoke": _SMOKE, "small": _SMALL, "paper": paper_presets.classification()},
    seeds={"smoke": 2, "small": 5, "paper": 5},
    measure=_measure,
    trainings=_all_trainings,
    judge=_judge,
)

# --- a vision transformer ---------------------------------------------------------------------------------------------

_VIT_PROTOCOL = (
    "Only that ViT-B/16 starts from torchvision's ImageNet weights and is fine-tuned on CIFAR-10 and CIFAR-100 was "
    "recovered. Chosen by us at the paper's scale: images resized to 224x224, 10 epochs of batch 128, SGD with momentum "
    "0.9, learning rate 0.01 on a cosine, no weight decay, crops and flips, rho 0.05, alpha 0.2, an eigenvector every 100 "
    "steps by 5 power iterations, all weights trained, the last layer new. At the small scale: a vision transformer of 3 "
    "layers, 32 wide, 16 patches, trained on 10,000 images of Fashion-MNIST by AdamW for 12 epochs, for each seed anew, "
    "then fine-tuned by each arm on 300 images of MNIST for 40 epochs and on 1,000 for 20: batch 32, learning rate 0.05, "
    "rho 0.05, alpha 0.2, an eigenvector every 20 steps. A pilot with seed 100 looked at SGD and SAM, and only at whether "
    "they fit their training data: optimizer, learning rate, batch, epochs and the number of patches come from there. "
    "Nothing is tuned for accuracy."
)

_VIT: Values = {
    "before": {
        "method": "sgd",
        "data": "fashion-mnist",
        "subset": 10_000,
        "optimizer": "adamw",
        "lr": 0.003,
        "weight_decay": 0.01,
        "batch_size": 128,
        "epochs": 12,
        "curvature": False,
        "probe_every": 0,
        "probe_samples": 1000,
    },
    "shared": {"batch_size": 32, "weight_decay": 0.0, "curvature": False, "probe_every": 0},
    "eigen": {"every": 20, "iterations": 5},
    "cells": [
        {
            "data": "mnist",
            "model": "vit-3-32",
            "lr": 0.05,
            "rho": 0.05,
            "alphas": [0.2],
            "subset": subset,
            "epochs": epochs,
        }
        for subset, epochs in ((300, 40), (1000, 20))
    ],
}

_VIT_SMOKE: Values = _VIT | {
    "before": _VIT["before"] | {"data": "digits", "subset": 100, "epochs": 1, "probe_samples": 50},
    "cells": [_VIT["cells"][0] | {"data": "digits", "subset": 100, "epochs": 1, "model": "vit-1-16"}],
}

VIT_FINETUNING = Claim(
    name="vit-finetuning",
    statement="A vision transformer fine-tuned by Eigen-SAM is more accurate than one fine-tuned by SAM or SGD.",
    source="arXiv 2501.12666, its table on ViT-B/16; its protocol was not recovered",
    protocol=_DECIDES + _VIT_PROTOCOL,
    scales={"smoke": _VIT_SMOKE, "small": _VIT, "paper": paper_presets.vit()},
    seeds={"smoke": 2, "small": 10, "paper": 5},
    measure=_measure,
    trainings=_all_trainings,
    judge=_judge,
)
