"""From settings to objects: what `train` needs before its first step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from flatwise import methods
from flatwise.curvature import eigenspace
from flatwise.methods import Dialogue, Method
from flatwise.objective import Objective
from flatwise.optim import SharpnessAware
from flatwise.optim.schedules import RhoSchedule
from flatwise.tasks import Task, build_model, check_data_name, check_model_name
from flatwise.training import hyper
from flatwise.training.config import SHORTCUTS, TrainConfig, nearest
from flatwise.training.hyper import Value
from flatwise.training.weights import start_from

STEPS = ("start", "stop", "steps")
"""Hyper-parameters that are numbers of steps and may be given as a share of the run, 0.0 to 1.0."""

SHARES: dict[str, dict[str, Value]] = {"late-sam": {"start": 0.75}, "ae-sam": {"steps": 1.0}}
"""Defaults in a run where those of a method do not know how long it is."""

IMAGENET = "imagenet"
"""What `pretrained` says for torchvision's weights; else it is the folder of a run."""

Loss = Callable[[Tensor, Tensor], Tensor]


def resolved(config: TrainConfig) -> TrainConfig:
    """The settings with the defaults that depend on other settings written out, those of the method among them.

    Raises:
        ValueError: for an unknown method, data set or model (the nearest is named), or a setting the method does not have.
    """
    check_data_name(config.data)
    check_model_name(config.model)
    method = build_method(config)
    _check_rho_schedule(config, method)
    _check_parts(config, method)
    _check_pretrained(config)
    values = values_of(config)
    others = {name: value for name, value in values.items() if _is_written(config, name, value)}
    sgd, is_endless = config.optimizer == "sgd", not (config.epochs or config.steps or config.evaluations)
    return replace(
        config,
        **{name: cast(Any, values[name]) for name in SHORTCUTS if name in values},
        hyper=hyper.write(others),
        epochs=40 if is_endless else config.epochs,
        lr=(0.05 if sgd else 0.001) if config.lr is None else config.lr,
        momentum=0.9 if sgd and config.momentum is None else config.momentum,
    )


def build_method(config: TrainConfig, steps: int = 1, objective: Objective | None = None) -> Dialogue:
    """The method with the hyper-parameters that were given.

    Args:
        config: the settings.
        steps: of the run: what is given as a share of it becomes a number of steps.
        objective: the loss of all training data, for methods that look at its top eigenvectors.

    Raises:
        ValueError: when one of them has no effect with this method, or is out of its range.
    """
    method = methods.by_name(config.method, **_in_steps(config, values_of(config), steps))
    if objective is None or "subspace" not in method.needs:
        return method
    return replace(cast(Any, method), subspace=eigenspace(objective))


def values_of(config: TrainConfig) -> dict[str, Value]:
    """All hyper-parameters of the method: those given, and the defaults of the others.

    Defaults that are a number of steps are shares of the run here, and a method's random numbers are drawn by the run's seed.
    """
    known = method_settings(config.method)
    seed = {"seed": config.seed} if "seed" in known else {}
    return known | seed | given(config)


def _in_steps(config: TrainConfig, values: Mapping[str, Value], steps: int) -> dict[str, Value]:
    """The values with shares of a run of so many steps turned into numbers of steps."""
    shares = {
        name: float(cast(float, values[name])) for name in STEPS if is_share(config.method, name, values.get(name))
    }
    return dict(values) | {name: max(int(name == "steps"), round(share * steps)) for name, share in shares.items()}


def given(config: TrainConfig) -> dict[str, Value]:
    """The hyper-parameters that the settings give to their method, by name; `method.name=value` goes before all others.

    Raises:
        ValueError: it does not have one of them.
    """
    known = method_settings(config.method)
    short = {name: value for name in SHORTCUTS if (value := getattr(config, name)) is not None}
    for entry in map(hyper.read, config.hyper):
        if entry.method is not None and entry.method != config.method:
            raise ValueError(
                f"hyper {entry.method}.{entry.name} has no effect with method {config.method}; leave it out"
            )
    values = short | hyper.for_method(config.hyper, config.method)
    for name in values.keys() - known.keys():
        useless = f"{name} {values[name]} has no effect with method {config.method}; leave it out"
        raise ValueError(useless + (nearest(name, known) if name not in SHORTCUTS else ""))
    return values


def method_settings(method: str) -> dict[str, Value]:
    """The hyper-parameters of the method of this name, with their defaults in a run."""
    return methods.settings(method) | SHARES.get(method, {})


def is_share(method: str, name: str, value: Value | None) -> bool:
    """Whether a value of a hyper-parameter that is a number of steps is a share of the run."""
    counts = name in STEPS and not isinstance(methods.settings(method).get(name), float)
    return counts and isinstance(value, float) and 0 <= value <= 1


def _check_parts(config: TrainConfig, method: Dialogue) -> None:
    if config.parts is None:
        return
    if not takes_parts(method):
        raise ValueError(f"parts {config.parts} has no effect with method {config.method}; leave it out")
    if 0 < config.batch_size < config.parts:
        raise ValueError(f"a batch of {config.batch_size} samples cannot be split into parts {config.parts}")


def takes_parts(method: Dialogue) -> bool:
    """Whether a dialogue for each part of the batch is another step than one for the whole.

    It is where the method asks for several evaluations, the same number for every part.
    """
    return not method.adaptive and method.cost != 1


def evaluations_in(config: TrainConfig, steps: int) -> float | None:
    """Gradient evaluations in a run of so many steps, as the method declares them; None where they depend on the data."""
    return build_method(config, steps).evaluations(steps)


def affordable(config: TrainConfig) -> int | None:
    """The steps that the budget of evaluations pays for, at least one; None without a budget, or where it is not known before."""
    budget = config.evaluations
    if budget is None or evaluations_in(config, budget) is None:
        return None
    return max(1, bisect_right(range(1, budget + 1), budget, key=lambda steps: evaluations_in(config, steps) or 0.0))


def _is_written(config: TrainConfig, name: str, value: Value) -> bool:
    """Whether a hyper-parameter is among the words of resolved settings; the run's own seed is there already."""
    return name not in SHORTCUTS and value is not None and not (name == "seed" and value == config.seed)


def _check_rho_schedule(config: TrainConfig, method: Method) -> None:
    if config.rho_schedule == "constant":
        return
    useless = f"rho_schedule {config.rho_schedule} has no effect with"
    if not hasattr(method, "rho"):
        raise ValueError(f"{useless} method {config.method}, which has no rho; leave it out")
    if not getattr(method, "rho", 0):
        raise ValueError(f"{useless} rho 0; leave it out")
    if config.evaluations and affordable(config) is None and config.rho_schedule != "learning-rate":
        raise ValueError(
            f"rho_schedule {config.rho_schedule} needs the number of steps, which is not known before where the cost of "
            f"{config.method} depends on the data; give steps in place of evaluations, or rho_schedule learning-rate"
        )
    if config.rho_schedule == "learning-rate" and config.schedule == "constant":
        raise ValueError(f"{useless} schedule constant, in which the learning rate does not change; leave it out")


def _check_pretrained(config: TrainConfig) -> None:
    if config.pretrained == IMAGENET and ":" not in config.model and config.model != "vit-b-16":
        raise ValueError(
            f"pretrained imagenet has no effect with model {config.model}, only with vit-b-16; leave it out"
        )


def build_network(config: TrainConfig, task: Task) -> nn.Module:
    """The model with its initial weights, which depend on the seed and the trained weights to start from, if any.

    Raises:
        ValueError: the weights to start from are not there, or do not fit.
    """
    options: dict[str, Any] = {} if config.widths is None else {"widths": config.widths}
    if config.init != "default":
        options["init"] = config.init
    if config.pretrained == IMAGENET:
        options["pretrained"] = True
    model = build_model(config.model, task, config.seed, **options)
    if config.pretrained not in (None, IMAGENET):
        start_from(model, config.pretrained)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def build_optimizer(
    config: TrainConfig, model: nn.Module, method: Method, rho_schedule: RhoSchedule | None = None
) -> SharpnessAware:
    """The method around the base optimizer; `config` is resolved, `rho_schedule` as in `SharpnessAware`."""
    lr, decay = config.lr or 0.0, config.weight_decay
    if config.optimizer == "adamw":
        base = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    else:
        base = torch.optim.SGD(model.parameters(), lr=lr, momentum=config.momentum or 0.0, weight_decay=decay)
    return SharpnessAware(base, method, model=model, rho_schedule=rho_schedule)


def build_losses(config: TrainConfig) -> Loss:
    """The loss [B] of each sample, from outputs [B, C] and targets [B]; or [B, T, C] and [B, T], the mean over its tokens."""
    if config.loss == "cross-entropy":
        return partial(cross_entropies, label_smoothing=config.label_smoothing)
    return squared_errors


def build_loss(config: TrainConfig) -> Loss:
    """The mean loss of outputs [B, C] and targets [B], or [B, T, C] and [B, T]."""
    if config.loss == "cross-entropy":
        return partial(cross_entropy, label_smoothing=config.label_smoothing)
    return squared_error


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over all targets."""
    flat = outputs.flatten(0, -2)
    return nn.functional.cross_entropy(flat, targets.flatten(), label_smoothing=label_smoothing)


def cross_entropies(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of each sample, [B]; the mean over its tokens where it has several targets."""
    by_class = outputs.movedim(-1, 1)
    return _of_samples(
        nn.functional.cross_entropy(by_class, targets, reduction="none", label_smoothing=label_smoothing)
    )


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over all B * C entries of (output - one-hot target)^2, without a factor 1/2 (arXiv 2309.12488)."""
    return squared_errors(outputs, targets).mean()


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """For each sample the mean over its C (or T * C) entries of (output - one-hot target)^2, [B]."""
    one_hot = nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return _of_samples(nn.functional.mse_loss(outputs, one_hot, reduction="none").mean(-1))


def _of_samples(losses: Tensor) -> Tensor:
    """From [B], or [B, T], to [B]."""
    return losses if losses.ndim == 1 else losses.mean(1)
