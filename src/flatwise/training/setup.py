"""From settings to objects: what `train` needs before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatwise import methods
from flatwise.methods import Method
from flatwise.optim import SharpnessAware
from flatwise.optim.schedules import RhoSchedule
from flatwise.tasks import Task, build_model, check_data_name, check_model_name
from flatwise.training.config import METHOD_SETTINGS, TrainConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def resolved(config: TrainConfig) -> TrainConfig:
    """The settings with the defaults that depend on other settings written out.

    Raises:
        ValueError: for an unknown method, data set or model (the nearest is named), or a setting the method does not have.
    """
    check_data_name(config.data)
    check_model_name(config.model)
    method = build_method(config)
    _check_rho_schedule(config, method)
    sgd = config.optimizer == "sgd"
    return replace(
        config,
        **{name: getattr(method, name) for name in METHOD_SETTINGS if hasattr(method, name)},
        epochs=40 if config.epochs is None and config.steps is None else config.epochs,
        lr=(0.05 if sgd else 0.001) if config.lr is None else config.lr,
        momentum=0.9 if sgd and config.momentum is None else config.momentum,
    )


def build_method(config: TrainConfig) -> Method:
    """The method with the settings that were given.

    Raises:
        ValueError: when one of them has no effect with this method, or is out of its range.
    """
    given = {name: value for name in METHOD_SETTINGS if (value := getattr(config, name)) is not None}
    for name in given.keys() - method_settings(config.method):
        raise ValueError(f"{name} {given[name]} has no effect with method {config.method}; leave it out")
    return methods.by_name(config.method, **given)


def method_settings(method: str) -> set[str]:
    """The settings that the method of this name has, such as rho, and with it rho_schedule."""
    found = {name for name in METHOD_SETTINGS if hasattr(methods.by_name(method), name)}
    return found | {"rho_schedule"} if "rho" in found else found


def _check_rho_schedule(config: TrainConfig, method: Method) -> None:
    if config.rho_schedule == "constant":
        return
    useless = f"rho_schedule {config.rho_schedule} has no effect with"
    if not hasattr(method, "rho"):
        raise ValueError(f"{useless} method {config.method}, which has no rho; leave it out")
    if not getattr(method, "rho", 0):
        raise ValueError(f"{useless} rho 0; leave it out")
    if config.rho_schedule == "learning-rate" and config.schedule == "constant":
        raise ValueError(f"{useless} schedule constant, in which the learning rate does not change; leave it out")


def build_network(config: TrainConfig, task: Task) -> nn.Module:
    """The model with its initial weights, which depend on the seed alone."""
    options: dict[str, Any] = {} if config.widths is None else {"widths": config.widths}
    if config.init != "default":
        options["init"] = config.init
    model = build_model(config.model, task, config.seed, **options)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def build_optimizer(config: TrainConfig, model: nn.Module, rho_schedule: RhoSchedule | None = None) -> SharpnessAware:
    """The method around the base optimizer; `config` is resolved, `rho_schedule` as in `SharpnessAware`."""
    lr, decay = config.lr or 0.0, config.weight_decay
    if config.optimizer == "adamw":
        base = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    else:
        base = torch.optim.SGD(model.parameters(), lr=lr, momentum=config.momentum or 0.0, weight_decay=decay)
    return SharpnessAware(base, build_method(config), model=model, rho_schedule=rho_schedule)


def build_loss(config: TrainConfig) -> Loss:
    """The mean loss of outputs [B, C] and targets [B]."""
    return nn.functional.cross_entropy if config.loss == "cross-entropy" else squared_error


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over all B * C entries of (output - one-hot target)^2, without a factor 1/2 (arXiv 2309.12488)."""
    one_hot = nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return nn.functional.mse_loss(outputs, one_hot)
