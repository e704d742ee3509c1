"""What a user passes in, checked at the first moment it can be known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from flatwise.methods import Method
from flatwise.methods.checks import non_negative
from flatwise.optim import messages


def base(optimizer: object, wrapper: type) -> None:
    """An instance of a torch optimizer that steps along `.grad`, with parameters that can be displaced."""
    if isinstance(optimizer, type):
        raise TypeError(
            f"base_optimizer must be an instance, got the class {optimizer.__name__}: "
            f"pass {optimizer.__name__}(model.parameters(), lr=...)"
        )
    if isinstance(optimizer, wrapper):
        raise TypeError("base_optimizer is a SharpnessAware already; pass the optimizer that it wraps")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"base_optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss itself and cannot step along a given direction; use another base optimizer"
        )
    _parameters(optimizer)


def _parameters(optimizer: Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(p.requires_grad for p in parameters):
        raise ValueError("no parameter of base_optimizer requires a gradient; there is nothing to train")
    if any(p.is_complex() for p in parameters):
        raise ValueError("complex parameters are not supported: hold real and imaginary parts in two real parameters")


def method(value: object) -> None:
    """An instance with `init` and `passes`."""
    if isinstance(value, type):
        raise TypeError(f"method must be an instance, got the class {value.__name__}: pass {value.__name__}()")
    if not (hasattr(value, "passes") and hasattr(value, "init")):
        raise TypeError(f"method must be one of flatwise.methods, such as SAM(rho=0.05), got {value!r}")


def model(value: object) -> None:
    """A module, or None."""
    if value is not None and not isinstance(value, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {value!r}")


def perturb(value: object, method: Method) -> None:
    """'global', or 'local' with a method whose evaluations are the same in number on every rank."""
    if value not in ("global", "local"):
        raise ValueError(f"perturb must be 'global' or 'local', got {value!r}")
    if value == "local" and method.adaptive:
        raise ValueError(
            "perturb='local' cannot be had with an adaptive method: ranks would ask for different evaluations"
        )


def each(value: object, parts: int | None, method: Method) -> None:
    """A dialogue per part needs parts, and as many evaluations in each."""
    if not isinstance(value, bool):
        raise TypeError(f"each must be True or False, got {value!r}")
    if value and parts is None:
        raise ValueError("each=True needs parts=m, the number of parts into which the batch is split")
    if value and method.adaptive:
        raise ValueError("each=True cannot be had with an adaptive method: parts would ask for different evaluations")


def ratios(groups: Sequence[dict[str, Any]], method: Method) -> list[float]:
    """For each parameter, its group's rho as a multiple of the method's."""
    rho = getattr(method, "rho", None)
    found: list[float] = []
    for group in groups:
        parameters = group["params"]
        size = 1 if isinstance(parameters, Tensor) else len(list(parameters))
        found += [_ratio(group.get("rho", rho), rho)] * size
    return found


def _ratio(own: Any, rho: float | None) -> float:
    if rho is None:
        return 1.0
    non_negative("rho of a parameter group", own)
    if rho == 0 and own > 0:
        raise ValueError(
            f"the method's rho is 0 but a parameter group asks for rho={own}; give the method a rho above 0"
        )
    return own / rho if rho else 0.0


def scaler(value: Any) -> Any:
    """A GradScaler, or None also where it is switched off."""
    if value is None:
        return None
    if not (hasattr(value, "scale") and hasattr(value, "is_enabled")):
        raise TypeError(f"scaler must be a torch.amp.GradScaler, got {value!r}")
    return value if value.is_enabled() else None


def closures(value: object) -> list[Callable[[], Any]]:
    """One closure, or a list of them."""
    found: list[Any] = list(cast(Sequence[Any], value)) if isinstance(value, (list, tuple)) else [value]
    if not found or not all(callable(c) for c in found):
        raise TypeError(f"step takes a closure or a non-empty list of closures, got {value!r}")
    return found


def loss(value: object) -> Tensor:
    """What a closure returned, as a tensor with one element."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value))
    raise TypeError(messages.NO_LOSS.format(value=value))


def scheduled(method: Method, factor: float) -> Method:
    """The method with its rho times what a schedule returned."""
    non_negative("the factor of rho_schedule", factor)
    return cast(Method, replace(cast(Any, method), rho=cast(Any, method).rho * factor))


def schedule(value: object, method: Method) -> None:
    """A function of step and learning rate, for a method that has a rho."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(
            f"rho_schedule must be one of flatwise.schedules, or a function (step, lr) -> factor, got {value!r}"
        )
    if not hasattr(method, "rho"):
        raise ValueError(f"rho_schedule has no effect: the method {type(method).__name__} has no rho")


def not_under_scaler() -> None:
    """Refuse a closure that came through `GradScaler.step`; wrappers of frameworks and schedulers lie between it and us."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(16):
        if frame is None:
            return
        if frame.f_globals.get("__name__") == "torch.amp.grad_scaler":
            raise RuntimeError(messages.SCALER_WITH_CLOSURE)
        frame = frame.f_back
